#pragma once
// A small training job for tests that run the program: a random corpus, a configuration, and what
// the run left.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace longhaul::test {

/// Loss and gradient norm of each step, as metrics.jsonl spells them: equal text is equal bits.
using StepTexts = std::map<std::int64_t, std::string>;

class TrainingJob {
 public:
  /// 12 KB of tokens in documents of all lengths and a model of a few thousand weights, in a folder
  /// of its own.
  TrainingJob();

  const TempDirectory& folder() const { return folder_; }
  const std::string& config() const { return config_; }
  const std::string& corpus() const { return corpus_; }
  /// Path of something in the output folder `name`.
  std::string output(const std::string& name, const std::string& file = "") const;

  /// Arguments of the program to train into the output folder `name`; `sets` are of the form
  /// section.key=value.
  std::vector<std::string> train(const std::string& name,
                                 const std::vector<std::string>& sets = {}) const;
  /// Runs that under mpirun (`ranks` > 0) or without, to its end.
  ProcessResult run(int ranks, const std::string& name,
                    const std::vector<std::string>& sets = {}) const;

  StepTexts steps(const std::string& name) const;
  /// Steps whose checkpoints are complete, ascending.
  std::vector<std::int64_t> checkpoints(const std::string& name) const;
  std::string checkpoint(const std::string& name, std::int64_t step) const;

 private:
  TempDirectory folder_;
  std::string corpus_, config_;
};

/// Writes a corpus of this many random tokens.
void write_random_corpus(const std::string& path, std::int64_t tokens, std::int64_t vocabulary,
                         unsigned seed);

/// Processes whose command line names this folder, with their rank (-1: none, such as mpirun).
std::map<pid_t, int> processes_of(const std::string& folder);
/// The process of one rank; -1 when there is none.
pid_t process_of_rank(const std::string& folder, int rank);

/// Polls until true. False after the deadline.
bool wait_until(const std::function<bool()>& condition, double seconds);

}  // namespace longhaul::test

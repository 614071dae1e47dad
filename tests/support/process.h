#pragma once
// Programs under test: start one, signal it, wait for it with a deadline, look at what it said.

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/support/temp_directory.h"

namespace longhaul::test {

struct ProcessOptions {
  double timeout_seconds = 60;
  std::map<std::string, std::string> environment = {};  ///< added to the caller's
  std::vector<std::string> unset = {};                  ///< removed from the caller's
  std::filesystem::path directory = {};                 ///< working directory; empty: the caller's
};

struct ProcessResult {
  int exit_code = -1;      ///< 128 + signal when a signal ended it
  int signal = 0;          ///< 0: it exited
  bool timed_out = false;  ///< it outlived the timeout and was killed
  double seconds = 0;
  std::string out, err;
};

/// A program in a process group of its own; whatever is left of the group is killed by the
/// destructor.
class Process {
 public:
  /// Searches PATH for a program name without a slash. Throws std::runtime_error when it cannot
  /// start.
  Process(const std::vector<std::string>& command, const ProcessOptions& options = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  /// Sends a signal to the program alone, or to its whole group.
  void signal(int number) const;
  void signal_group(int number) const;
  /// Whether it has not ended yet.
  bool running();
  /// What it has written to standard output so far.
  std::string said() const;
  /// Waits for the end or the timeout (counted from the start), then kills what is left of the
  /// group.
  ProcessResult wait();

 private:
  bool reap(bool block);
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
  double timeout_seconds_, started_, finished_ = 0;
  std::filesystem::path out_path_, err_path_;
};

/// Start and wait.
ProcessResult run_process(const std::vector<std::string>& command,
                          const ProcessOptions& options = {});

/// The program of this build with these arguments.
ProcessResult run_longhaul(const std::vector<std::string>& arguments,
                           const ProcessOptions& options = {});
/// The same under mpirun with `ranks` ranks.
std::vector<std::string> mpirun_command(int ranks, const std::vector<std::string>& arguments);
/// Path of this build's program.
std::string longhaul_program();

}  // namespace longhaul::test

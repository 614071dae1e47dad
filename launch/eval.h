#pragma once
// `longhaul eval`: the loss of a run's checkpoint on a corpus, by position.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::launch {

struct EvalOptions {
  std::string config_path;
  std::vector<std::string> overrides;  ///< "section.key=value"
  std::string corpus;  ///< "": validation.corpus where it is enabled, else data.corpus
  std::optional<std::int64_t> step;   ///< of the checkpoint; without it the newest
  std::vector<std::int64_t> buckets;  ///< positions at which they begin; empty: position_buckets()
  std::string tokenizer;  ///< that made the corpus, to count bytes: see make_tokenizer()
  std::string json_path;  ///< "": none
  bool force = false;     ///< the file at json_path may be replaced
};

/// As one rank of what mpirun or srun started, or as all ranks with comm.backend = "loopback". The
/// corpus is cut into sequences of training.seq_len as a validation's is: none overlaps another,
/// and what a sequence does not hold is not seen. Nothing is added to its documents. Rank 0 prints
/// a table. Throws Error(data) without a checkpoint, Error(config) for one of another model or
/// a step that has none, else as training.
int run_eval(const EvalOptions& options);

}  // namespace longhaul::launch

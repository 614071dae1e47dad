#pragma once
// `longhaul attention`: replays one attention call from a file, spread over ranks, and writes what
// it gave.

#include <string>

#include "launch/attention_case.h"
#include "launch/old_schemes.h"

namespace longhaul::launch {

struct AttentionOptions {
  std::string case_path;  ///< HDF5: q [B,S,H,D], k, v [B,S,H_kv,D] float32; dout, sinks, scale and
                          ///< what the mask takes
  std::string output_path;       ///< HDF5: out, lse, dq, dk, dv in global token order, bytes, area
  bool force = false;            ///< an output that is a file already is replaced
  std::string scheme = "ring";   ///< an expression, or a policy
  OldSchemeOptions old_options;  ///< refused, with what replaces them
  std::string layout = "zigzag";
  MaskRequest mask;
  std::string weighting = "softmax";  ///< or "sigmoid"
  double softcap = 0, bias = 0;       ///< of scores; see attention::Scoring
  std::string dtype = "float32";
  std::string wire_dtype = "float32";
  std::string communicator = "mpi";
  int ranks =
      0;  ///< of a loopback run (0: 1); under mpi and nccl it must be the launcher's, if given
  /// Ranks [0, n), [n, 2n), ... count as nodes; 0: those whose hosts MPI says are one.
  int ranks_per_node = 0;
  std::string device = "cpu";
  double timeout_seconds = 300;
};

/// Returns 0 only if the schedules verified. Throws Error(data) for a malformed case, Error(config)
/// for a combination that does not exist.
int run_attention(const AttentionOptions& options);

}  // namespace longhaul::launch

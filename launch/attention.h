#pragma once
// `longhaul attention`: replays one attention call from a file, spread over ranks, and writes what
// it gave.

#include <optional>
#include <string>

#include "launch/case_file.h"
#include "launch/old_schemes.h"

namespace longhaul::launch {

struct AttentionOptions {
  /// HDF5: q [B,S,H,D], k, v [B,S,H_kv,D] float32; dout, sinks, scale and what the mask takes. Of a
  /// recurrence as linear_case.h says.
  std::string case_path;
  std::string output_path;       ///< HDF5: out, lse, dq, dk, dv in global token order, bytes, area
  bool force = false;            ///< an output that is a file already is replaced
  std::string kind = "softmax";  ///< or one of attention::recurrence_kinds()
  /// An expression, or a policy; none: ring, and of a recurrence auto.
  std::optional<std::string> scheme;
  OldSchemeOptions old_options;  ///< refused, with what replaces them
  std::string layout = "zigzag";
  MaskRequest mask;
  std::optional<std::string> weighting;    ///< "softmax" (none) or "sigmoid"
  std::optional<double> softcap, bias;     ///< of scores; see attention::Scoring
  std::optional<std::string> feature_map;  ///< of a recurrence's q and k; none: identity
  bool normalize = false;                  ///< attention/normaliser.h
  std::string dtype = "float32";
  std::string wire_dtype = "float32";
  std::string communicator = "mpi";
  int ranks =
      0;  ///< of a loopback run (0: 1); under mpi and nccl it must be the launcher's, if given
  /// Ranks [0, n), [n, 2n), ... count as nodes; 0: those whose hosts MPI says are one.
  int ranks_per_node = 0;
  std::string device = "cpu";
  double timeout_seconds = 300;
  /// Or "auto", as CommConfig: rings lend, and what they lend is not sent.
  std::string shared_memory = "off";
  std::optional<std::string> pretend;  ///< parse_pretending(); none: it computes
};

/// Returns 0 only if the schedules verified. Throws Error(data) for a malformed case, Error(config)
/// for a combination that does not exist.
int run_attention(const AttentionOptions& options);

}  // namespace longhaul::launch

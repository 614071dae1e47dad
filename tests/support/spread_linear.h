#pragma once
// Recurrences whose rows lie on several ranks: what all ranks make of a case together, against the
// double reference of each sequence.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/attention.h"
#include "runtime/comm/communicator.h"
#include "tests/support/linear_case.h"

namespace longhaul::test {

/// A batch of sequences of equal length as one token axis.
struct LinearProblem {
  std::string name{};
  LinearCase inputs{};  ///< over all tokens; starts are those of documents, sequences' included
  std::int64_t batch = 1;
  bool initial_state = false, final_state = false;  ///< of the call
  bool slopes_gradient = false;
  /// Of each sequence, [E,H,D] one after another; read where the call has them.
  std::vector<float> initial_states{}, dfinal_states{};

  std::int64_t tokens() const { return inputs.shape.rows; }
  attention::HeadMasks masks() const;
  parallel::LinearCall call() const;
};
/// Documents at `offsets` of every sequence.
LinearProblem linear_problem(const std::string& kind, const attention::LinearShape& shape,
                             std::int64_t batch, const std::vector<std::int64_t>& offsets,
                             Gates gates = Gates::mild, std::uint32_t seed = 1);

/// All rows in token order; states by sequence.
struct LinearAnswer {
  std::vector<float> out{}, dq{}, dk{}, dv{}, dlog_decay{}, dbeta{};
  std::vector<float> final_states{}, dinitial_states{};
  std::vector<std::vector<float>> kept{};           ///< by rank: states that entered its runs
  std::vector<std::map<int, std::int64_t>> sent{};  ///< by rank and peer: bytes, both ways
  /// Bit for bit; not what was sent.
  bool same_bits(const LinearAnswer& other) const;
};

struct LinearJob {
  const LinearProblem* problem = nullptr;
  parallel::Layout layout;
  parallel::Expression scheme = {};
};
std::string show(const LinearJob& job);

/// Collective over `world`: this rank's rows are filled in, the others' are NaN. Memory is
/// poisoned.
std::vector<LinearAnswer> run_linear_jobs_of_rank(std::span<const LinearJob> jobs,
                                                  runtime::Communicator& world, int threads = 1);
/// All ranks as threads of this process.
std::vector<LinearAnswer> run_linear_jobs(std::span<const LinearJob> jobs, int ranks,
                                          int threads = 1);

/// Of all tensors, RMS relative: the largest, gates' apart.
struct LinearErrors {
  double values = 0, gates = 0;
  std::string worst{};
};
LinearErrors linear_errors(const LinearProblem& problem, const LinearAnswer& got);

}  // namespace longhaul::test

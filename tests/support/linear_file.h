#pragma once
// Cases of `longhaul attention --kind`: a file, its results, and the token recurrence of it in
// double.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/support/linear_case.h"

namespace longhaul::test {

struct LinearFile {
  std::string kind{};
  std::int64_t batch = 2, seq_len = 37;
  std::int64_t key_heads = 2, heads = 4, dim = 8, value_dim = 5;
  bool normalize = false;                 ///< states have a column more
  bool full = false;                      ///< mask full: not causal
  std::vector<std::int64_t> documents{};  ///< offsets in each sequence; empty: none
  LinearCase rows{};                      ///< of all sequences; starts and states unused
  std::vector<float> initial_state{}, dfinal_state{};  ///< [B,H,D,columns]; empty: none

  std::int64_t columns() const { return value_dim + (normalize ? 1 : 0); }
  /// Under the delta rule k has a norm of 1 and beta is in (0, 1).
  void fill(std::uint32_t seed, Gates gates = Gates::mild);
  void fill_states(std::uint32_t seed);
  /// Tokens [begin, end) of every sequence, without states.
  LinearFile tokens(std::int64_t begin, std::int64_t end) const;
  void write(const std::string& path) const;
};

/// Datasets by name; values are missing where a call has none.
using LinearValues = std::map<std::string, std::vector<float>>;
LinearValues read_linear_results(const std::string& path);
/// Of dq, dk and the like: mapped(x) and its derivative stand before the recurrence of q and k.
struct Map {
  double (*value)(double) = [](double x) { return x; };
  double (*slope)(double) = [](double) { return 1.0; };
};
std::map<std::string, std::vector<double>> expected_results(const LinearFile& file,
                                                            const Map& map = {});

/// RMS relative: gradients of log decays 1e-5, all else `bound`.
void expect_near_reference(const LinearFile& file, const LinearValues& got, double bound = 2e-6,
                           const Map& map = {});

}  // namespace longhaul::test

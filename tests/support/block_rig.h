#pragma once
// One block on loopback ranks, for tests: what it makes of rows, and its gradients.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/block.h"
#include "parallel/layout.h"
#include "tests/support/recurrent_oracle.h"

namespace longhaul::test {

/// A block and its definition. Parameters have no prefix; the norm in front is called kBlockNorm.
struct BlockCase {
  std::string name;
  std::int64_t hidden = 0;
  std::function<std::unique_ptr<models::Block>(runtime::DType, parallel::ParameterTable&)> make;
  /// x [n,h] -> the block's output, by the parameters' names.
  std::function<std::vector<double>(const NamedValues&, const std::vector<double>&,
                                    const OracleRows&)>
      definition;
  std::int64_t rope_dim = 0;
  friend void PrintTo(const BlockCase& c, std::ostream* out) { *out << c.name; }
};
inline constexpr const char* kBlockNorm = "input_layernorm.weight";
inline constexpr double kBlockRopeTheta = 100;

/// Blocks around a recurrence, of sizes that differ from one another.
std::vector<BlockCase> recurrent_cases();

/// Documents of these lengths, one behind the other.
OracleRows rows_of_documents(const std::vector<std::int64_t>& lengths);

/// What a block is run on.
struct BlockJob {
  const BlockCase& block;
  std::vector<std::int64_t> lengths;  ///< of documents
  int ranks = 1;
  parallel::LayoutKind layout = parallel::LayoutKind::contiguous;
  runtime::DType dtype = runtime::DType::float32;
  int threads = 1;
};
/// Rows in token order; gradients of the parameters summed over the ranks.
struct BlockResults {
  std::vector<double> y, dx;
  NamedValues parameters, gradients;
};
/// From x and the output's gradient dy [n,h]. Parameters are the same for every job of a block.
BlockResults run_block(const BlockJob& job, const std::vector<double>& x,
                       const std::vector<double>& dy);
/// By the definition; gradients are differences of it.
BlockResults defined_block(const BlockCase& block, const std::vector<std::int64_t>& lengths,
                           const NamedValues& parameters, const std::vector<double>& x,
                           const std::vector<double>& dy);

/// Most bytes that tensors of one rank take in activate() and output(), and in backward() beside
/// dx; and what is held between the two.
struct BlockPeaks {
  std::int64_t forward = 0, kept = 0, backward = 0;
};
/// Of each rank.
std::vector<BlockPeaks> block_peaks(const BlockJob& job);

}  // namespace longhaul::test

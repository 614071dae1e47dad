#pragma once
// One attention problem: seeded inputs, the kernel's results, the references' results and their
// distance.

#include <cstdint>
#include <random>
#include <vector>

#include "attention/block.h"
#include "attention/reference.h"
#include "runtime/tensor.h"

namespace longhaul::test {

struct AttentionCase {
  std::int64_t q_rows = 0, k_rows = 0, heads = 1, kv_heads = 1, dim = 16, value_dim = 16;
  std::vector<attention::Slice> bands{};
  attention::Scoring scoring{};
  /// What cases are in that do not say: where kernels for bfloat16 are run on every case.
  static inline bool bf16_unless_said = false;
  bool bf16 = bf16_unless_said;
  std::vector<float> q{}, k{}, v{}, dout{};                 // rounded to bfloat16 when bf16
  std::vector<float> sinks{};                               ///< one a query head, or none
  std::vector<std::vector<attention::Slice>> head_bands{};  ///< of each query head, for `bands`

  bool sigmoid() const { return scoring.weighting == attention::Weighting::sigmoid; }
  /// Whether the CPU's kernels compute it on AMX tiles, and round weights to bfloat16.
  bool on_tiles() const;
  /// Uniform in +-magnitude; scoring.scale is 1/sqrt(dim).
  void fill(std::uint32_t seed, float magnitude = 1);
};

struct AttentionResult {
  std::vector<float> out{}, lse{}, dq{}, dk{}, dv{}, dsinks{};  // no lse for sigmoid
  std::vector<float> lse_low{};                                 ///< of each LSE, beside `lse`
  bool operator==(const AttentionResult& other) const;          // bit for bit
  /// From and to the block contract's [rows, heads, 2].
  void set_lse(const std::vector<float>& parts);
  std::vector<float> lse_parts() const;
};

/// How the kernels are called.
struct KernelOptions {
  int threads = 1;
  std::vector<std::int64_t>
      key_cuts{};        ///< key views end here (write, then add); empty for one call
  bool strided = false;  ///< heads outermost, gaps between rows
  double seconds = 60;
};

/// One call of the block contract: some heads' bands over some of the keys.
struct BlockCall {
  std::int64_t key_begin, key_end;
  std::int64_t head_begin, head_end, kv_head_begin, kv_head_end;
  std::vector<attention::Slice> bands{};
  attention::Mode q_mode;   ///< write for the first keys of these heads
  attention::Mode kv_mode;  ///< write for the first query heads of these keys
};
/// The calls of a case whose key views end at `key_cuts` and at its last key. All heads in one
/// call, or with head_bands one head a call.
std::vector<BlockCall> block_calls(const AttentionCase& which, std::vector<std::int64_t> key_cuts);

/// The call's part of a tensor of queries (an empty view stays empty) and of one of keys.
runtime::TensorView heads_of(const BlockCall& call, const runtime::TensorView& view);
runtime::TensorView keys_of(const BlockCall& call, const runtime::TensorView& view);

/// block_forward, apply_sinks, block_delta, block_backward, sinks_backward on the CPU into outputs
/// that hold NaN before. Fails the test when an input changes.
AttentionResult run_kernel(const AttentionCase& which, const KernelOptions& options = {});

template <class T>
attention::ReferenceResult<T> run_reference(const AttentionCase& which, bool magnitudes = false);

/// ||a - b|| / ||b||, or ||a|| where b is all zero. NaN anywhere gives NaN.
double relative_error(const std::vector<float>& a, const std::vector<double>& b);

/// Out within 4e-3, gradients within 6e-3 of the fp64 reference, in norm: rounding to bfloat16 is
/// 1.7e-3, and a kernel rounds weights and results (cuDNN measured: at most 3.1e-3,
/// launch/gpu/RESULTS.md). Where a gradient cancels, within 2^-9 of the sum of its terms'
/// magnitudes. LSE within lse_bound max(1, |lse|), its low part 0 or what merging left.
void expect_matches_in_bfloat16(const AttentionCase& which, const AttentionResult& got,
                                double lse_bound = 1e-5);

/// As in bfloat16, LSE within 5e-4, where that is how the CPU's kernels compute the case. Else out
/// and gradients within max(3e-6, 2x the float reference's error), and gradients that cancel
/// within 2^-22 of the sum of their terms' magnitudes; LSE within 1e-5 max(1, |lse|), its high part
/// the float nearest to it.
void expect_matches_reference(const AttentionCase& which, const AttentionResult& got);

}  // namespace longhaul::test

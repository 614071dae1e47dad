#pragma once
// The norm of the gradients and what clips them. The norm is made from sums over fixed chunks of
// the flat storage, added in an order that follows from their number, so its bits depend neither on
// the number of threads nor on which rank has summed which chunk.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

constexpr std::int64_t kNormChunk = 16384;  ///< elements of the flat storage

/// Chunks of `elements`, the last one perhaps shorter.
constexpr std::int64_t norm_chunks(std::int64_t elements) {
  return (elements + kNormChunk - 1) / kNormChunk;
}

/// sums[c] = sum of values[i]^2 over chunk c, in double. Shapes: values[n] fp32 contiguous ->
/// sums[norm_chunks(n)] float64, overwritten.
void squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream);

/// norm = sqrt(sums[0] + sums[1] + ...). Shapes: sums[chunks] float64 (none: 0) ->
/// norm[1] float64, overwritten.
void norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream);

/// factor = max_norm / norm where norm is above max_norm, else 1; max_norm 0: always 1. A norm that
/// is not finite gives a factor of NaN, with which adamw() updates nothing; whoever reads the norm
/// ends the run. Shapes: norm[1] -> factor[1], float64. Throws (through the stream of a CPU, which
/// reads the norm as it runs): Error(internal) naming the optimizer's `step` when the norm is not
/// finite; nothing later on the stream runs then.
void clip_factor(ConstTensorView norm, double max_norm, std::int64_t step, TensorView factor,
                 const Stream& stream);

/// For whoever reads the norm: throws that Error(internal) when it is not finite.
void require_finite_norm(double norm, std::int64_t step);

}  // namespace longhaul::runtime::ops

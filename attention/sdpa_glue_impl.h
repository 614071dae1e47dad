#pragma once
// Kernels between the block contract and cuDNN's attention: what it computed in bfloat16 goes into
// float32 partials and gradients, and what backward reads is made. Knows nothing of CUDA's headers.
// Private to attention/.

#include <cstdint>

#include "attention/block_plan.h"

namespace longhaul::attention::detail {

/// What becomes of the rows of a range.
enum class Take : std::int32_t {
  first,  ///< no call has touched them before: as the block call's mode says
  again,  ///< they are added, or merged
  none    ///< no call computes them: they become those of a row that sees nothing
};
/// Rows [begin, ...) of a view; the range ends where the next one's `before` begins.
struct RowRange {
  std::int32_t begin;
  std::int32_t before;  ///< rows of the ranges before
  Take take;
};
struct RowRanges {
  const RowRange* ranges = nullptr;  ///< on the device
  std::int32_t count = 0;
  std::int32_t rows = 0;  ///< of all
};

/// out, lse <- a partial of cuDNN's: out bfloat16 [rows, heads, value_dim] and lse float32 [rows,
/// heads], both 16-byte aligned, whose row 0 is row `first` of the views. Reads neither for `none`.
void take_partial(const std::byte* from, const float* from_lse, std::int64_t first,
                  const RowRanges& ranges, Mode mode, runtime::TensorView out,
                  runtime::TensorView lse, const runtime::Stream& stream);
/// The same for a gradient, bfloat16 [rows, heads, dim] from row 0.
void take_gradient(const std::byte* from, const RowRanges& ranges, Mode mode,
                   runtime::TensorView gradient, const runtime::Stream& stream);

/// to[rows, heads, value_dim] bfloat16, 16-byte aligned <- dout delta / |dout|^2, of which
/// rowsum(dout to) = delta is all that backward takes from an output; 0 where dout is.
void stand_in_for_out(runtime::ConstTensorView dout, runtime::ConstTensorView delta, std::byte* to,
                      const runtime::Stream& stream);

/// The high part of lse[rows, heads, 2] for `batch` entries of `rows` rows, `step` apart from row
/// `first`: to[entry, head, row], or with `row_major` to[entry, row, head].
struct LseRows {
  std::int64_t batch, rows, step, first;
  bool row_major;
};
void copy_lse(runtime::ConstTensorView lse, const LseRows& which, float* to,
              const runtime::Stream& stream);

}  // namespace longhaul::attention::detail

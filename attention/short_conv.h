#pragma once
// The short causal convolution in front of a linear layer's recurrence, on one device: depthwise,
// of width K, then silu. A rank's rows lie in runs of consecutive tokens. What a run reads of its
// first document before its first row, or backward of its last document behind its last row, comes
// as rows of a halo, at most K - 1 a run.
//
//   pre_t = bias + sum_j weight[:, K-1-j] x_{t-j},   j = 0 .. K-1, within t's document
//   y_t = silu(pre_t)
//   dpre_t = dy_t silu'(pre_t)
//   dx_t = sum_j weight[:, K-1-j] dpre_{t+j}         within t's document: complete, nothing to add
//   dweight[:, K-1-j] += sum_t dpre_t x_{t-j};  dbias += sum_t dpre_t
//
// Shapes: x, y, dy, dpre, dx[n,C] and the halos left[l,C] of x, right[r,C] of dpre in the
// activation dtype (float32 or bfloat16); their rows may be strided. weight, dweight[C,K] and bias,
// dbias[C] fp32, contiguous: Hugging Face's conv1d.weight [C,1,K] without its middle dim, the
// oldest tap first. No bias: no data. Any size may be zero; inputs are not modified. Sums of a row
// are fp32 in one order, those of dweight and dbias double over rows in order: no result depends on
// the number of threads, and y, dpre and dx of a token not on how its document is cut into runs.
// Nothing of a document, not even a NaN, reaches another's rows. Source: Mamba (Gu and Dao 2023),
// Gated DeltaNet (Yang et al. 2025).

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/run.h"
#include "runtime/tensor.h"

namespace longhaul::attention {

constexpr std::int64_t kMaxConvWidth = 5;

/// Rows of one run that are tokens of one document, and the rows of the halos that continue them.
struct ConvPiece {
  std::int64_t row_begin = 0, row_end = 0;
  /// Rows of the left halo, oldest first: the tokens right before row_begin. None but for a run's
  /// first piece.
  std::int64_t left_begin = 0, left_rows = 0;
  /// Rows of the right halo: the tokens from row_end on. None but for a run's last piece.
  std::int64_t right_begin = 0, right_rows = 0;
  bool operator==(const ConvPiece&) const = default;
};

/// Where the rows of a rank lie: what the convolutions of a batch have in common.
struct ConvRows {
  std::int64_t width = 1;              ///< K
  std::int64_t rows = 0;               ///< n
  std::vector<ConvPiece> pieces = {};  ///< in row order, covering all rows
  /// The tokens of the halos, run by run: those before each run and those behind it that its
  /// document has, at most K - 1.
  std::vector<runtime::Run> left = {}, right = {};
  std::int64_t left_rows = 0, right_rows = 0;
};

/// `runs`: a rank's tokens, rising; runs that follow one another are one. `documents`: offsets that
/// rise from 0 to the token axis' length; empty documents are allowed. Throws Error(config) for a
/// width outside [1, kMaxConvWidth] and for runs that are not of consecutive tokens.
ConvRows conv_rows(std::span<const runtime::Run> runs, std::span<const std::int64_t> documents,
                   std::int64_t width);

/// What forward and backward read.
struct ShortConvInputs {
  runtime::ConstTensorView x, left;
  runtime::ConstTensorView weight;
  runtime::ConstTensorView bias;  ///< no data: none
};

/// y, overwritten. No other tensor's memory.
void short_conv(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                runtime::TensorView y, const runtime::Stream& stream);

/// dpre, overwritten; it may be dy. The first rows of each run are other runs' right halo.
void short_conv_dpre(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                     runtime::ConstTensorView dy, runtime::TensorView dpre,
                     const runtime::Stream& stream);

struct ShortConvGradients {
  runtime::TensorView dx;       ///< overwritten
  runtime::TensorView dweight;  ///< added to
  runtime::TensorView dbias;    ///< added to; no data where there is no bias
};
/// From dpre of this rank's rows, and `right`, that of the rows behind its runs.
void short_conv_backward(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                         runtime::ConstTensorView dpre, runtime::ConstTensorView right,
                         const ShortConvGradients& gradients, const runtime::Stream& stream);

}  // namespace longhaul::attention

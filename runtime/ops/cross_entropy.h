#pragma once
// Cross entropy of a chunk of logits with integer labels, each of a weight. A row whose label is -1
// or weighs 0 has no loss and no gradient. The log-sum-exp of a row is taken in double; so are the
// sums over rows, which add rows in order, so cutting the rows into chunks does not change a bit of
// them.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// What rows are to predict.
struct Labels {
  ConstTensorView tokens;        ///< int32[rows]; -1: none
  ConstTensorView weights = {};  ///< float32[rows], not negative; without data every label weighs 1
  /// Those of rows [begin, end).
  Labels slice(std::int64_t begin, std::int64_t end) const;
};

/// What is made of the gradient of logits.
struct LogitsGradient {
  /// Of the loss: 1 / the global sum of weights when it is their mean.
  double scale = 1;
  DType dtype = DType::float32;  ///< or bfloat16
  /// c > 0: the logits are c tanh(x / c), as softcap() gives them, and the gradient is that of x.
  double softcap = 0;
};

/// loss_sum += sum of weight * row loss; returns dlogits = scale * weight * d(row loss)/d(logits),
/// 0 in rows without a label, rounded once to gradient.dtype. It takes the logits'
/// place: each of its rows begins where the row of logits began (so bfloat16 rows lie 2 V elements
/// apart), and what is left of the logits is worth nothing. Shapes: logits[rows,V] fp32, labels of
/// rows, loss_sum[1] float64 -> dlogits[rows,V]. Weights of 1 give the bits of none. A label
/// outside [-1, V) or a weight that is negative or not finite: Error(data) naming the row, through
/// the stream of a CPU; on CUDA, where a kernel cannot report it, the loss and the row's gradient
/// become NaN, which the norm of the gradients shows.
TensorView cross_entropy_backward(TensorView logits, const Labels& labels,
                                  const LogitsGradient& gradient, TensorView loss_sum,
                                  const Stream& stream);

/// Forward only: loss_sum[1] float64 is added to as above; row_loss[rows] float32, unweighted, and
/// row_correct[rows] uint8 (1 where the first largest logit is the label's) are overwritten, 0 in
/// rows without a label. Bad labels and weights as above; on CUDA loss_sum and row_loss become NaN.
void cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                   TensorView row_loss, TensorView row_correct, const Stream& stream);

}  // namespace longhaul::runtime::ops

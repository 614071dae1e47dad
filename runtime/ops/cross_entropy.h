#pragma once
// Cross entropy of a chunk of logits with integer labels. A row whose label is -1 has no loss and
// no gradient. The log-sum-exp of a row is taken in double; so are the sums over rows, which add
// rows in order, so cutting the rows into chunks does not change a bit of them.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// loss_sum += sum of row losses; logits <- scale * d(row loss)/d(logits), 0 in rows without a
/// label. Shapes: logits[rows,V] fp32, labels[rows] int32 (-1: none), loss_sum[1] float64. `scale`
/// is 1 / the global number of labels when the loss is their mean. Throws (through the stream):
/// Error(data) naming the row of a label outside [-1, V).
void cross_entropy_backward(TensorView logits, ConstTensorView labels, double scale,
                            TensorView loss_sum, const Stream& stream);

/// Forward only: loss_sum[1] float64 is added to; row_loss[rows] float32 and row_correct[rows]
/// uint8 (1 where the first largest logit is the label's) are overwritten, 0 in rows without a
/// label. Throws as above.
void cross_entropy(ConstTensorView logits, ConstTensorView labels, TensorView loss_sum,
                   TensorView row_loss, TensorView row_correct, const Stream& stream);

}  // namespace longhaul::runtime::ops

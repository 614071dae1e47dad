#pragma once
// The bias of a projection.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y += bias in every row, in fp32, rounded once.
/// Shapes: y[rows,m] float32 or bfloat16, bias[m] fp32.
void add_bias(ConstTensorView bias, TensorView y, const Stream& stream);

/// dbias[m] fp32 += the sums of the columns of dy[rows,m], float32 or bfloat16. Sums are in double
/// and of an order that the shapes alone say: the same bits whatever the number of threads.
void bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream);

}  // namespace longhaul::runtime::ops

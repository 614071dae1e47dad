#pragma once
// Token embedding.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// out[r] = table[tokens[r]], rounded to out's dtype.
/// Shapes: table[V,h] float32 or bfloat16, tokens[rows] int32 -> out[rows,h] float32 or bfloat16.
/// Throws (through the stream): Error(data) naming the row of a token outside [0, V).
void embedding(ConstTensorView table, ConstTensorView tokens, TensorView out, const Stream& stream);

/// dtable[tokens[r]] += dout[r], rows in order: the same bits whatever the number of threads.
/// Shapes: dout[rows,h] float32 or bfloat16, dtable[V,h] fp32. Throws as embedding().
void embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                        const Stream& stream);

}  // namespace longhaul::runtime::ops

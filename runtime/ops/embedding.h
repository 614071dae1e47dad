#pragma once
// Token embedding. Tokens are checked where they are used, and by whoever brings them into a
// device's memory: a kernel cannot report one that is outside the vocabulary, so on CUDA it makes
// NaN of what it touches, which the norm of the gradients shows.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// out[r] = table[tokens[r]], rounded to out's dtype.
/// Shapes: table[V,h] float32 or bfloat16, tokens[rows] int32 -> out[rows,h] float32 or bfloat16.
/// A token outside [0, V): Error(data) naming the row, through the stream of a CPU; on CUDA the row
/// becomes NaN.
void embedding(ConstTensorView table, ConstTensorView tokens, TensorView out, const Stream& stream);

/// dtable[tokens[r]] += dout[r], rows in order: the same bits whatever the number of threads.
/// Shapes: dout[rows,h] float32 or bfloat16, dtable[V,h] fp32. A token outside [0, V) as in
/// embedding(); on CUDA dtable[0] becomes NaN.
void embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                        const Stream& stream);

}  // namespace longhaul::runtime::ops

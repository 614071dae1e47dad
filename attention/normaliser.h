#pragma once
// The normaliser of linear attention: values take a column of ones, whose sum by the same weights
// divides the others.

#include "runtime/tensor.h"

namespace longhaul::attention {

/// Values with a column of ones behind them.
/// Shapes: v[n,H,E] float32 or bfloat16, strided in rows and heads -> extended[n,H,E+1] as v,
/// contiguous. Aliasing: none. Throws: Error on a shape or dtype mismatch; Error(config) on CUDA,
/// which has no kernel. Source: Katharopoulos et al. 2020.
void append_ones(runtime::ConstTensorView v, runtime::TensorView extended,
                 const runtime::Stream& stream);

/// out = the first E columns / the last one: what the recurrence gave of extended values. The
/// denominator keeps its sign: feature maps with negative values may bring it near 0. Where it is
/// exactly 0, as when a relu map leaves a query no key, out is 0 and no gradient passes.
/// Shapes: extended[n,H,E+1] fp32 -> out[n,H,E] fp32, contiguous. Otherwise as there.
void normalise(runtime::ConstTensorView extended, runtime::TensorView out,
               const runtime::Stream& stream);

/// dout[n,H,E] -> dextended[n,H,E+1], each fp32 or bfloat16.
void normalise_backward(runtime::ConstTensorView extended, runtime::ConstTensorView dout,
                        runtime::TensorView dextended, const runtime::Stream& stream);

}  // namespace longhaul::attention

#pragma once
// The block contract: local attention of some query rows over some key rows on one device.
// Everything distributed is built from these calls and from merging their results.
//
// Shapes: q[n_q, H, D], k[n_k, H_kv, D], v[n_k, H_kv, D_v], dout[n_q, H, D_v] in the activation
// dtype (float32 or bfloat16); out[n_q, H, D_v], lse[n_q, H], delta[n_q, H], dq[n_q, H, D], dk[n_k,
// H_kv, D], dv[n_k, H_kv, D_v] fp32. Views may be strided in rows and heads; the last dim is
// contiguous. H is a multiple of H_kv: query head h reads key/value head h * H_kv / H. Batch rows
// are rows: their mask keeps them apart. LSE is the natural log. A row without a key has out 0 and
// LSE -inf. Any size may be zero. Inputs are not modified. Results do not depend on the number of
// threads.

#include <span>
#include <vector>

#include "attention/mask.h"
#include "runtime/tensor.h"

namespace longhaul::attention {

/// What a step does with rows that its output view already holds.
enum class Mode : unsigned char {
  write,  ///< define every row of the view
  add     ///< merge (partials) or sum (gradients) into defined rows
};

/// Unrounded fp32 out and LSE of the visible pairs; `add` merges with the partial already there.
/// Source: FlashAttention-2 (Dao 2023), online softmax.
void block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                   runtime::ConstTensorView v, std::vector<Slice> bands, float scale,
                   runtime::TensorView out, runtime::TensorView lse, Mode mode,
                   const runtime::Stream& stream);

struct BlockBackwardInputs {
  runtime::ConstTensorView q, k, v, dout;
  runtime::ConstTensorView lse;    ///< global LSE, from the finished forward
  runtime::ConstTensorView delta;  ///< rowsum(dout * out) of the finished forward
};
/// Gradients of the visible pairs: P = exp(scale q k - lse), dS = P (dout v - delta).
void block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands, float scale,
                    runtime::TensorView dq, Mode dq_mode, runtime::TensorView dk,
                    runtime::TensorView dv, Mode dkv_mode, const runtime::Stream& stream);

/// delta[n, H] = rowsum(dout * out). out and dout in float32 or bfloat16.
void block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                 runtime::TensorView delta, const runtime::Stream& stream);

/// dst <- the attention over the union of two disjoint key sets, from their partials. The maximum
/// is taken first, so any LSE difference and -inf on either side are exact.
void merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
           runtime::TensorView dst_out, runtime::TensorView dst_lse, const runtime::Stream& stream);

}  // namespace longhaul::attention

#pragma once
// The block contract: local attention of some query rows over some key rows on one device.
// Everything distributed is built from these calls and from merging their results.
// block_plan.h is the same contract for calls that are prepared.
//
// Shapes: q[n_q, H, D], k[n_k, H_kv, D], v[n_k, H_kv, D_v], dout[n_q, H, D_v] in the activation
// dtype (float32 or bfloat16); out[n_q, H, D_v], lse[n_q, H, 2], delta[n_q, H], dq[n_q, H, D],
// dk[n_k, H_kv, D], dv[n_k, H_kv, D_v] fp32. Views may be strided in rows and heads; the last dim
// is contiguous. H is a multiple of H_kv: query head h reads key/value head h * H_kv / H. Batch
// rows are rows: their mask keeps them apart. LSE is the natural log, as its nearest float and what
// that leaves out (a library that has only the first gives 0): a weight is exp((score - high) -
// low), whose error does not grow with an offset that the scores of a row share. A row without a
// key has out 0 and LSE (-inf, 0). Any size may be zero. Inputs are not modified. Results do not
// depend on the number of threads.

#include <vector>

#include "attention/mask.h"
#include "runtime/tensor.h"

namespace longhaul::attention {

/// What a step does with rows that its output view already holds.
enum class Mode : unsigned char {
  write,  ///< define every row of the view
  add     ///< merge (partials) or sum (gradients) into defined rows
};

/// How a (query, key) product becomes a weight.
enum class Weighting : unsigned char {
  softmax,  ///< exp(score - LSE): the weights of a row sum to 1
  sigmoid   ///< 1 / (1 + exp(-score - bias)), each on its own: no LSE, partial sums add
};

/// From q . k to the weight of v: score = scale q . k, capped, then weighted.
struct Scoring {
  float scale = 1;
  /// c > 0: the score becomes c tanh(score / c). 0: none. Source: Gemma 2 (Gemma Team 2024).
  float softcap = 0;
  Weighting weighting = Weighting::softmax;
  /// Added to a sigmoid's score; 0 for softmax. FlashSigmoid (Ramapuram et al. 2024) takes
  /// -log(sequence length).
  float bias = 0;
  bool operator==(const Scoring&) const = default;
};

// block_forward() and block_backward() plan, run and forget: for a call that is made once. What is
// called again, layer by layer, plans with block_plan.h.

/// Softmax: unrounded fp32 out and LSE of the visible pairs; `add` merges with the partial already
/// there. Source: FlashAttention-2 (Dao 2023), online softmax.
/// Sigmoid: out = the sum of weight times value, 0 for a row without a key; `add` adds. `lse` is an
/// empty view. Source: FlashSigmoid.
void block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                   runtime::ConstTensorView v, const std::vector<Slice>& bands,
                   const Scoring& scoring, runtime::TensorView out, runtime::TensorView lse,
                   Mode mode, const runtime::Stream& stream);

struct BlockBackwardInputs {
  runtime::ConstTensorView q, k, v, dout;
  runtime::ConstTensorView lse;    ///< global LSE, from the finished forward; empty for sigmoid
  runtime::ConstTensorView delta;  ///< rowsum(dout * out) of it; empty for sigmoid
};
/// Gradients of the visible pairs. Softmax: P = exp(score - lse), dS = P (dout v - delta). Sigmoid:
/// dS = P (1 - P) dout v. Through a softcap, dS goes on times 1 - tanh^2(score / c).
void block_backward(const BlockBackwardInputs& inputs, const std::vector<Slice>& bands,
                    const Scoring& scoring, runtime::TensorView dq, Mode dq_mode,
                    runtime::TensorView dk, runtime::TensorView dv, Mode dkv_mode,
                    const runtime::Stream& stream);

/// delta[n, H] = rowsum(dout * out). out and dout in float32 or bfloat16.
void block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                 runtime::TensorView delta, const runtime::Stream& stream);

/// dst <- the attention over the union of two disjoint key sets, from their partials. The maximum
/// is taken first, so any LSE difference and -inf on either side are exact.
void merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
           runtime::TensorView dst_out, runtime::TensorView dst_lse, const runtime::Stream& stream);

/// Attention sinks (StreamingLLM, Xiao et al. 2023; a logit for each query head as in gpt-oss,
/// OpenAI 2025): out[n, H, D_v], lse[n, H, 2] <- as if each row also saw a key of logit sinks[h]
/// (fp32 [H]) whose value is 0. A row without a key gets out 0 and its sink as LSE; a sink of -inf
/// changes nothing. The owner of the rows calls it once, after the last merge; delta and backward
/// then take this out and this LSE, so kernels and schedules know nothing of sinks. Softmax only.
void apply_sinks(runtime::TensorView out, runtime::TensorView lse, runtime::ConstTensorView sinks,
                 const runtime::Stream& stream);
/// dsinks[h] (fp32, overwritten) = - the sum over these rows of exp(sinks[h] - lse) delta, with the
/// LSE after apply_sinks. Over several ranks: the sum of theirs.
void sinks_backward(runtime::ConstTensorView lse, runtime::ConstTensorView delta,
                    runtime::ConstTensorView sinks, runtime::TensorView dsinks,
                    const runtime::Stream& stream);

}  // namespace longhaul::attention

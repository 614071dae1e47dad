#pragma once
// Private to runtime/ops: what an operation calls after its checks, one function a device. Every
// function only enqueues; sizes may be zero.
//
// x_cpu.cpp holds cpu_x. cuda_x is in a file by family: matmul_cuda.cpp (cuBLASLt),
// rms_norm_cuda.cu, bias_cuda.cu, embedding_cuda.cu, pointwise_cuda.cu (rope, glu, sigmoid_gate,
// squared_relu, softcap, scaled, cast), loss_cuda.cu (cross_entropy) and update_cuda.cu (adamw, the
// norm's sums, clip_factor, fill_normal); or, in a CPU build, in ops_no_cuda.cpp, which refuses. An
// operation without a cuda_x refuses a CUDA stream in its x.cpp (runtime/require_cpu.h).

#include "runtime/ops/adamw.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/feature_map.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/glu.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/random.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::ops::detail {

void cpu_adamw(const AdamWFactors& factors, ConstTensorView gradient,
               ConstTensorView gradient_factor, const AdamWState& state, const Stream& stream);
void cuda_adamw(const AdamWFactors& factors, ConstTensorView gradient,
                ConstTensorView gradient_factor, const AdamWState& state, const Stream& stream);

void cpu_add_bias(ConstTensorView bias, TensorView y, const Stream& stream);
void cuda_add_bias(ConstTensorView bias, TensorView y, const Stream& stream);
void cpu_bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream);
void cuda_bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream);

/// `dlogits` lies in the logits' memory, row by row.
void cpu_cross_entropy_backward(ConstTensorView logits, const Labels& labels,
                                const LogitsGradient& gradient, TensorView dlogits,
                                TensorView loss_sum, const Stream& stream);
void cuda_cross_entropy_backward(ConstTensorView logits, const Labels& labels,
                                 const LogitsGradient& gradient, TensorView dlogits,
                                 TensorView loss_sum, const Stream& stream);
void cpu_cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                       TensorView row_loss, TensorView row_correct, const Stream& stream);
void cuda_cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                        TensorView row_loss, TensorView row_correct, const Stream& stream);

void cpu_cast(ConstTensorView src, TensorView dst, const Stream& stream);
void cuda_cast(ConstTensorView src, TensorView dst, const Stream& stream);

void cpu_embedding(ConstTensorView table, ConstTensorView tokens, TensorView out,
                   const Stream& stream);
void cuda_embedding(ConstTensorView table, ConstTensorView tokens, TensorView out,
                    const Stream& stream);
void cpu_embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                            const Stream& stream);
void cuda_embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                             const Stream& stream);

void cpu_feature_map(FeatureMap map, ConstTensorView x, TensorView y, const Stream& stream);
void cpu_feature_map_backward(FeatureMap map, ConstTensorView x, ConstTensorView dy, TensorView dx,
                              const Stream& stream);

void cpu_gated_norm(const GatedNorm& norm, ConstTensorView x, ConstTensorView gate,
                    ConstTensorView weight, TensorView y, const Stream& stream);
void cpu_gated_norm_backward(const GatedNorm& norm, const GatedNormBackwardInputs& inputs,
                             TensorView dx, TensorView dgate, TensorView dweight,
                             const Stream& stream);

void cpu_l2_norm(ConstTensorView x, double eps, TensorView y, const Stream& stream);
void cpu_l2_norm_backward(ConstTensorView x, ConstTensorView dy, double eps, TensorView dx,
                          const Stream& stream);

void cpu_glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream);
void cuda_glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream);
void cpu_glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream);
void cuda_glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream);

void cpu_squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream);
void cuda_squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream);
void cpu_norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream);
void cuda_norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream);
void cpu_clip_factor(ConstTensorView norm, double max_norm, std::int64_t step, TensorView factor,
                     const Stream& stream);
void cuda_clip_factor(ConstTensorView norm, double max_norm, std::int64_t step, TensorView factor,
                      const Stream& stream);

/// A matrix as gemm libraries take it.
struct MatrixOperand {
  ConstTensorView view;
  bool transposed = false;
  std::int64_t leading = 1;  ///< stride of the dim that is not contiguous
};
/// c = a b, or a b + addend where the addend has data: c itself, or another matrix of c's dtype.
/// c's rows are `leading_c` elements apart; neither it nor the addend is transposed. Neither c nor
/// the depth is empty.
void cpu_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                TensorView c, std::int64_t leading_c, const Stream& stream);
void cuda_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                 TensorView c, std::int64_t leading_c, const Stream& stream);

void cpu_fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                     std::int64_t first_element, const Stream& stream);
void cuda_fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                      std::int64_t first_element, const Stream& stream);

void cpu_rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
                  TensorView inv_rms, const Stream& stream);
void cuda_rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
                   TensorView inv_rms, const Stream& stream);
void cpu_inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream);
void cuda_inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream);
void cpu_rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                        TensorView y, const Stream& stream);
void cuda_rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                         TensorView y, const Stream& stream);
void cpu_rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                           TensorView dweight, const Stream& stream);
void cuda_rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                            TensorView dweight, const Stream& stream);

void cpu_rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                    TensorView cosines, TensorView sines, const Stream& stream);
void cuda_rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                     TensorView cosines, TensorView sines, const Stream& stream);
void cpu_rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
              TensorView y, const Stream& stream);
void cuda_rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
               TensorView y, const Stream& stream);

void cpu_scaled(ConstTensorView x, double factor, Write write, TensorView y, const Stream& stream);
void cuda_scaled(ConstTensorView x, double factor, Write write, TensorView y, const Stream& stream);

void cpu_sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y, const Stream& stream);
void cuda_sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y, const Stream& stream);
void cpu_sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy,
                               const Stream& stream);
void cuda_sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy,
                                const Stream& stream);

void cpu_softcap(TensorView x, double cap, const Stream& stream);
void cuda_softcap(TensorView x, double cap, const Stream& stream);

void cpu_squared_relu(ConstTensorView x, TensorView y, const Stream& stream);
void cuda_squared_relu(ConstTensorView x, TensorView y, const Stream& stream);
void cpu_squared_relu_backward(TensorView x, TensorView dy, const Stream& stream);
void cuda_squared_relu_backward(TensorView x, TensorView dy, const Stream& stream);

}  // namespace longhaul::runtime::ops::detail

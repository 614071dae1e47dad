// The CPU build's side of ops_impl.h.
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

[[noreturn]] void no_cuda(const char* op, const Stream& stream) {
  fail(ExitCode::launch, op, " cannot run on ", to_string(stream.device()), " (stream '",
       stream.name(), "'): this build has no CUDA backend; build with LONGHAUL_CUDA=ON");
}

}  // namespace

void cuda_adamw(const AdamWFactors&, ConstTensorView, ConstTensorView, const AdamWState&,
                const Stream& stream) {
  no_cuda("adamw", stream);
}
void cuda_add_bias(ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("add_bias", stream);
}
void cuda_bias_backward(ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("bias_backward", stream);
}
void cuda_cross_entropy_backward(ConstTensorView, const Labels&, const LogitsGradient&, TensorView,
                                 TensorView, const Stream& stream) {
  no_cuda("cross_entropy_backward", stream);
}
void cuda_cross_entropy(ConstTensorView, const Labels&, TensorView, TensorView, TensorView,
                        const Stream& stream) {
  no_cuda("cross_entropy", stream);
}
void cuda_cast(ConstTensorView, TensorView, const Stream& stream) { no_cuda("cast", stream); }
void cuda_embedding(ConstTensorView, ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("embedding", stream);
}
void cuda_embedding_backward(ConstTensorView, ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("embedding_backward", stream);
}
void cuda_glu(Glu, ConstTensorView, TensorView, const Stream& stream) { no_cuda("glu", stream); }
void cuda_glu_backward(Glu, TensorView, TensorView, const Stream& stream) {
  no_cuda("glu_backward", stream);
}
void cuda_squares_by_chunk(ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("squares_by_chunk", stream);
}
void cuda_norm_of_chunks(ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("norm_of_chunks", stream);
}
void cuda_clip_factor(ConstTensorView, double, std::int64_t, TensorView, const Stream& stream) {
  no_cuda("clip_factor", stream);
}
void cuda_matmul(const MatrixOperand&, const MatrixOperand&, const MatrixOperand&, TensorView,
                 std::int64_t, const Stream& stream) {
  no_cuda("matmul", stream);
}
void cuda_fill_normal(TensorView, double, double, RandomKey, std::int64_t, const Stream& stream) {
  no_cuda("fill_normal", stream);
}
void cuda_rms_norm(ConstTensorView, const NormWeight&, double, TensorView, TensorView,
                   const Stream& stream) {
  no_cuda("rms_norm", stream);
}
void cuda_inverse_rms(ConstTensorView, double, TensorView, const Stream& stream) {
  no_cuda("inverse_rms", stream);
}
void cuda_rms_norm_apply(ConstTensorView, const NormWeight&, ConstTensorView, TensorView,
                         const Stream& stream) {
  no_cuda("rms_norm_apply", stream);
}
void cuda_rms_norm_backward(const RmsNormBackwardInputs&, TensorView, Write, TensorView,
                            const Stream& stream) {
  no_cuda("rms_norm_backward", stream);
}
void cuda_rope_table(ConstTensorView, std::span<const double>, double, TensorView, TensorView,
                     const Stream& stream) {
  no_cuda("rope_table", stream);
}
void cuda_rope(ConstTensorView, ConstTensorView, ConstTensorView, Rotation, TensorView,
               const Stream& stream) {
  no_cuda("rope", stream);
}
void cuda_scaled(ConstTensorView, double, Write, TensorView, const Stream& stream) {
  no_cuda("scaled", stream);
}
void cuda_sigmoid_gate(ConstTensorView, ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("sigmoid_gate", stream);
}
void cuda_sigmoid_gate_backward(ConstTensorView, TensorView, TensorView, const Stream& stream) {
  no_cuda("sigmoid_gate_backward", stream);
}
void cuda_softcap(TensorView, double, const Stream& stream) { no_cuda("softcap", stream); }
void cuda_squared_relu(ConstTensorView, TensorView, const Stream& stream) {
  no_cuda("squared_relu", stream);
}
void cuda_squared_relu_backward(TensorView, TensorView, const Stream& stream) {
  no_cuda("squared_relu_backward", stream);
}

}  // namespace longhaul::runtime::ops::detail

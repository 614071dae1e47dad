#include "attention/block.h"

#include <algorithm>
#include <cmath>

#include "attention/block_impl.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::DeviceKind;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

std::string shape(const ConstTensorView& view) {
  std::string text = "[";
  for (const std::int64_t size : view.sizes())
    text += runtime::concat(text.size() > 1 ? ", " : "", size);
  return text + "] " + name(view.dtype());
}

/// rows x heads (x dim): sizes, dtype, device, contiguous last dim.
void check(const char* what, const ConstTensorView& view, std::initializer_list<std::int64_t> sizes,
           DType dtype, const Stream& stream) {
  LONGHAUL_CHECK(std::equal(sizes.begin(), sizes.end(), view.sizes().begin(), view.sizes().end()) &&
                     view.dtype() == dtype,
                 what, " is ", shape(view), "; expected ",
                 shape(ConstTensorView(nullptr, dtype, stream.device(),
                                       std::span(sizes.begin(), sizes.size()))));
  LONGHAUL_CHECK(view.device() == stream.device(), what, " is on ", to_string(view.device()),
                 ", the stream on ", to_string(stream.device()));
  if (sizes.size() == 3) {
    LONGHAUL_CHECK(view.size(2) <= 1 || view.stride(2) == 1, "the last dim of ", what,
                   " has stride ", view.stride(2), "; expected 1");
  }
}

struct Shape {
  std::int64_t q_rows, k_rows, heads, kv_heads, dim, value_dim;
};

Shape check_inputs(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                   const Stream& stream) {
  LONGHAUL_CHECK(q.dims() == 3 && k.dims() == 3 && v.dims() == 3, "q, k, v have ", q.dims(), ", ",
                 k.dims(), ", ", v.dims(), " dims; expected rows, heads, dim");
  LONGHAUL_CHECK(q.dtype() == DType::float32 || q.dtype() == DType::bfloat16, "q is ",
                 name(q.dtype()), "; expected float32 or bfloat16");
  const Shape s{q.size(0), k.size(0), q.size(1), k.size(1), q.size(2), v.size(2)};
  check("q", q, {s.q_rows, s.heads, s.dim}, q.dtype(), stream);
  check("k", k, {s.k_rows, s.kv_heads, s.dim}, q.dtype(), stream);
  check("v", v, {s.k_rows, s.kv_heads, s.value_dim}, q.dtype(), stream);
  LONGHAUL_CHECK(s.kv_heads == 0 ? s.heads == 0 : s.heads % s.kv_heads == 0, s.heads,
                 " query heads are no multiple of ", s.kv_heads, " key/value heads");
  return s;
}

std::vector<Slice> check_bands(const std::vector<Slice>& bands, const Shape& s) {
  std::vector<Slice> kept;
  kept.reserve(bands.size());
  for (const Slice& band : bands) {
    const Slice tight = tightened(band);
    if (tight.q_begin == tight.q_end) continue;
    LONGHAUL_CHECK(tight.q_begin >= 0 && tight.q_end <= s.q_rows && tight.k_begin >= 0 &&
                       tight.k_end <= s.k_rows,
                   "band of queries [", tight.q_begin, ", ", tight.q_end, ") and keys [",
                   tight.k_begin, ", ", tight.k_end, ") leaves views of ", s.q_rows, " and ",
                   s.k_rows, " rows");
    kept.push_back(tight);
  }
  std::sort(kept.begin(), kept.end(), [](const Slice& a, const Slice& b) {
    return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
  });
  return kept;
}

void check_scoring(const Scoring& scoring) {
  // A cap below 1e-38 has no finite reciprocal.
  LONGHAUL_CHECK(scoring.softcap == 0 || (scoring.softcap > 0 && std::isfinite(scoring.softcap) &&
                                          std::isfinite(1 / scoring.softcap)),
                 "softcap is ", scoring.softcap, "; expected 0 for none or a positive number");
  LONGHAUL_CHECK(std::isfinite(scoring.scale), "scale is ", scoring.scale);
  LONGHAUL_CHECK(std::isfinite(scoring.bias), "bias is ", scoring.bias);
  LONGHAUL_CHECK(scoring.weighting == Weighting::sigmoid || scoring.bias == 0, "bias is ",
                 scoring.bias, "; softmax has none: expected 0");
}

/// What a row of a softmax has one of, and a sigmoid must not be given.
void check_per_row(const char* what, const ConstTensorView& view, const Shape& s,
                   const Scoring& scoring, const Stream& stream) {
  if (scoring.weighting == Weighting::softmax) {
    return check(what, view, {s.q_rows, s.heads}, DType::float32, stream);
  }
  LONGHAUL_CHECK(view.data() == nullptr, what, " is ", shape(view),
                 "; sigmoid attention has none: expected an empty view");
}

bool on_cuda(const Stream& stream) { return stream.device().kind == DeviceKind::cuda; }

}  // namespace

void block_forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                   std::vector<Slice> bands, const Scoring& scoring, TensorView out, TensorView lse,
                   Mode mode, const Stream& stream) {
  check_scoring(scoring);
  const Shape s = check_inputs(q, k, v, stream);
  check("out", out, {s.q_rows, s.heads, s.value_dim}, DType::float32, stream);
  check_per_row("lse", lse, s, scoring, stream);
  const auto run = on_cuda(stream) ? detail::cuda_block_forward : detail::cpu_block_forward;
  run(q, k, v, check_bands(bands, s), scoring, out, lse, mode, stream);
}

void block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands,
                    const Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk,
                    TensorView dv, Mode dkv_mode, const Stream& stream) {
  check_scoring(scoring);
  const Shape s = check_inputs(inputs.q, inputs.k, inputs.v, stream);
  check("dout", inputs.dout, {s.q_rows, s.heads, s.value_dim}, inputs.q.dtype(), stream);
  check_per_row("lse", inputs.lse, s, scoring, stream);
  check_per_row("delta", inputs.delta, s, scoring, stream);
  check("dq", dq, {s.q_rows, s.heads, s.dim}, DType::float32, stream);
  check("dk", dk, {s.k_rows, s.kv_heads, s.dim}, DType::float32, stream);
  check("dv", dv, {s.k_rows, s.kv_heads, s.value_dim}, DType::float32, stream);
  const auto run = on_cuda(stream) ? detail::cuda_block_backward : detail::cpu_block_backward;
  run(inputs, check_bands(bands, s), scoring, dq, dq_mode, dk, dv, dkv_mode, stream);
}

void block_delta(ConstTensorView out, ConstTensorView dout, TensorView delta,
                 const Stream& stream) {
  LONGHAUL_CHECK(out.dims() == 3, "out has ", out.dims(), " dims; expected rows, heads, dim");
  for (const auto& view : {out, dout}) {
    LONGHAUL_CHECK(view.dtype() == DType::float32 || view.dtype() == DType::bfloat16,
                   "out or dout is ", name(view.dtype()), "; expected float32 or bfloat16");
  }
  check("out", out, {out.size(0), out.size(1), out.size(2)}, out.dtype(), stream);
  check("dout", dout, {out.size(0), out.size(1), out.size(2)}, dout.dtype(), stream);
  check("delta", delta, {out.size(0), out.size(1)}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_block_delta : detail::cpu_block_delta)(out, dout, delta, stream);
}

void merge(ConstTensorView src_out, ConstTensorView src_lse, TensorView dst_out, TensorView dst_lse,
           const Stream& stream) {
  LONGHAUL_CHECK(dst_out.dims() == 3, "out has ", dst_out.dims(),
                 " dims; expected rows, heads, dim");
  const std::int64_t rows = dst_out.size(0), heads = dst_out.size(1), dim = dst_out.size(2);
  check("the merged out", dst_out, {rows, heads, dim}, DType::float32, stream);
  check("the merged lse", dst_lse, {rows, heads}, DType::float32, stream);
  check("the partial out", src_out, {rows, heads, dim}, DType::float32, stream);
  check("the partial lse", src_lse, {rows, heads}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_merge : detail::cpu_merge)(src_out, src_lse, dst_out, dst_lse,
                                                             stream);
}

void apply_sinks(TensorView out, TensorView lse, ConstTensorView sinks, const Stream& stream) {
  LONGHAUL_CHECK(out.dims() == 3, "out has ", out.dims(), " dims; expected rows, heads, dim");
  const std::int64_t rows = out.size(0), heads = out.size(1);
  check("out", out, {rows, heads, out.size(2)}, DType::float32, stream);
  check("lse", lse, {rows, heads}, DType::float32, stream);
  check("sinks", sinks, {heads}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_apply_sinks : detail::cpu_apply_sinks)(out, lse, sinks, stream);
}

void sinks_backward(ConstTensorView lse, ConstTensorView delta, ConstTensorView sinks,
                    TensorView dsinks, const Stream& stream) {
  LONGHAUL_CHECK(lse.dims() == 2, "lse has ", lse.dims(), " dims; expected rows, heads");
  const std::int64_t rows = lse.size(0), heads = lse.size(1);
  check("lse", lse, {rows, heads}, DType::float32, stream);
  check("delta", delta, {rows, heads}, DType::float32, stream);
  check("sinks", sinks, {heads}, DType::float32, stream);
  check("dsinks", dsinks, {heads}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_sinks_backward : detail::cpu_sinks_backward)(lse, delta, sinks,
                                                                               dsinks, stream);
}

}  // namespace longhaul::attention

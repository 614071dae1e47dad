#include "attention/block.h"

#include <algorithm>
#include <string>

#include "attention/block_check_impl.h"
#include "attention/block_impl.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

std::string shape(const runtime::ConstTensorView& view) {
  std::string text = "[";
  for (const std::int64_t size : view.sizes())
    text += runtime::concat(text.size() > 1 ? ", " : "", size);
  return text + "] " + name(view.dtype());
}

}  // namespace

void detail::check(const char* what, const runtime::ConstTensorView& view,
                   std::initializer_list<std::int64_t> sizes, runtime::DType dtype,
                   const runtime::Stream& stream) {
  LONGHAUL_CHECK(std::equal(sizes.begin(), sizes.end(), view.sizes().begin(), view.sizes().end()) &&
                     view.dtype() == dtype,
                 what, " is ", shape(view), "; expected ",
                 shape(runtime::ConstTensorView(nullptr, dtype, stream.device(),
                                                std::span(sizes.begin(), sizes.size()))));
  LONGHAUL_CHECK(view.device() == stream.device(), what, " is on ", to_string(view.device()),
                 ", the stream on ", to_string(stream.device()));
  if (sizes.size() == 3) {
    LONGHAUL_CHECK(view.size(2) <= 1 || view.stride(2) == 1, "the last dim of ", what,
                   " has stride ", view.stride(2), "; expected 1");
  }
}

namespace {

using runtime::ConstTensorView;
using runtime::DeviceKind;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

using detail::check;

bool on_cuda(const Stream& stream) { return stream.device().kind == DeviceKind::cuda; }

}  // namespace

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
  check("the merged lse", dst_lse, {rows, heads, 2}, DType::float32, stream);
  check("the partial out", src_out, {rows, heads, dim}, DType::float32, stream);
  check("the partial lse", src_lse, {rows, heads, 2}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_merge : detail::cpu_merge)(src_out, src_lse, dst_out, dst_lse,
                                                             stream);
}

void apply_sinks(TensorView out, TensorView lse, ConstTensorView sinks, const Stream& stream) {
  LONGHAUL_CHECK(out.dims() == 3, "out has ", out.dims(), " dims; expected rows, heads, dim");
  const std::int64_t rows = out.size(0), heads = out.size(1);
  check("out", out, {rows, heads, out.size(2)}, DType::float32, stream);
  check("lse", lse, {rows, heads, 2}, DType::float32, stream);
  check("sinks", sinks, {heads}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_apply_sinks : detail::cpu_apply_sinks)(out, lse, sinks, stream);
}

void sinks_backward(ConstTensorView lse, ConstTensorView delta, ConstTensorView sinks,
                    TensorView dsinks, const Stream& stream) {
  LONGHAUL_CHECK(lse.dims() == 3, "lse has ", lse.dims(),
                 " dims; expected rows, heads, high and low");
  const std::int64_t rows = lse.size(0), heads = lse.size(1);
  check("lse", lse, {rows, heads, 2}, DType::float32, stream);
  check("delta", delta, {rows, heads}, DType::float32, stream);
  check("sinks", sinks, {heads}, DType::float32, stream);
  check("dsinks", dsinks, {heads}, DType::float32, stream);
  (on_cuda(stream) ? detail::cuda_sinks_backward : detail::cpu_sinks_backward)(lse, delta, sinks,
                                                                               dsinks, stream);
}

}  // namespace longhaul::attention

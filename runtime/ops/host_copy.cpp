#include "runtime/ops/host_copy.h"

#include <cstring>
#include <utility>

#include "runtime/ops/checks.h"

// On the CPU a tensor's memory is host memory. On CUDA the bytes go through pinned memory of the
// stream, which host tasks fill and read in the stream's order.

namespace longhaul::runtime::ops {
namespace {

void copy_bytes(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

template <class View>
BasicTensorView<std::remove_pointer_t<decltype(std::declval<View>().data())>> as_bytes(
    const View& view) {
  return {view.data(), DType::uint8, view.device(), {view.bytes()}};
}

}  // namespace

template <class T>
void upload(std::vector<T> values, TensorView dst, const Stream& stream) {
  const auto elements = static_cast<std::int64_t>(values.size());
  detail::require_dtype("upload", "dst", dst, {DTypeOf<T>::value});
  LONGHAUL_CHECK(dst.contiguous() && dst.elements() == elements, "upload of ", elements,
                 " values to ", dst.elements(), dst.contiguous() ? "" : " strided",
                 " elements; expected as many, contiguous");
  if (elements == 0) return;
  const std::int64_t bytes = dst.bytes();
  if (!detail::on_cuda(stream)) {
    stream.cpu_task([values = std::move(values), to = dst.data(), bytes] {
      copy_bytes(to, values.data(), bytes);
    });
    return;
  }
  const Buffer staging = stream.allocate_host(bytes);
  stream.host_task([values = std::move(values), to = staging.data(), bytes] {
    copy_bytes(to, values.data(), bytes);
  });
  copy(ConstTensorView(staging.data(), DType::uint8, Device{}, {bytes}), as_bytes(dst), stream);
}

void upload_bytes(std::span<const std::byte> bytes, std::byte* to, const Stream& stream) {
  const auto* from = reinterpret_cast<const std::uint8_t*>(bytes.data());
  upload(std::vector(from, from + bytes.size()),
         TensorView(to, DType::uint8, stream.device(), {std::ssize(bytes)}), stream);
}

template <class T>
std::shared_ptr<const std::vector<T>> download(ConstTensorView src, const Stream& stream) {
  detail::require_dtype("download", "src", src, {DTypeOf<T>::value});
  LONGHAUL_CHECK(src.contiguous(), "download takes contiguous memory");
  const auto values = std::make_shared<std::vector<T>>(static_cast<std::size_t>(src.elements()));
  const std::int64_t bytes = src.bytes();
  if (bytes == 0) return values;
  if (!detail::on_cuda(stream)) {
    stream.cpu_task(
        [values, from = src.data(), bytes] { copy_bytes(values->data(), from, bytes); });
    return values;
  }
  const Buffer staging = stream.allocate_host(bytes);
  copy(as_bytes(src), TensorView(staging.data(), DType::uint8, Device{}, {bytes}), stream);
  stream.host_task(
      [values, from = staging.data(), bytes] { copy_bytes(values->data(), from, bytes); });
  return values;
}

#define LONGHAUL_HOST_COPY(T)                                      \
  template void upload(std::vector<T>, TensorView, const Stream&); \
  template std::shared_ptr<const std::vector<T>> download(ConstTensorView, const Stream&)
LONGHAUL_HOST_COPY(float);
LONGHAUL_HOST_COPY(BFloat16);
LONGHAUL_HOST_COPY(double);
LONGHAUL_HOST_COPY(std::int32_t);
LONGHAUL_HOST_COPY(std::int64_t);
LONGHAUL_HOST_COPY(std::uint8_t);
#undef LONGHAUL_HOST_COPY

TensorView host_view(std::span<float> values, std::span<const std::int64_t> sizes) {
  const TensorView view(reinterpret_cast<std::byte*>(values.data()), DType::float32, Device{},
                        sizes);
  LONGHAUL_CHECK(view.elements() == std::ssize(values), "a view of ", view.elements(),
                 " elements of ", values.size(), " values");
  return view;
}

}  // namespace longhaul::runtime::ops

// copy() where a CUDA stream takes part: by the copy engines where the bytes lie together, else by
// kernels (tensor_kernels_cuda.cu).

#include "runtime/cuda_check_impl.h"
#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
namespace {

/// Memory that CUDA does not know makes a copy block inside the driver until the stream has come so
/// far, and the host task that the stream waits for cannot reach the driver meanwhile.
void check_pinned(const void* host, const Stream& stream) {
  cudaPointerAttributes attributes{};
  LONGHAUL_CUDA_CHECK(cudaPointerGetAttributes(&attributes, host));
  LONGHAUL_CHECK(attributes.type == cudaMemoryTypeHost, "copy on stream '", stream.name(),
                 "' between ", to_string(stream.device()),
                 " and pageable host memory; use memory of Stream::allocate_host(), or "
                 "ops::upload() and ops::download()");
}

}  // namespace

void cuda_copy(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  const bool from_host = src.device().kind == DeviceKind::cpu;
  const bool to_host = dst.device().kind == DeviceKind::cpu;
  if (from_host && to_host) {
    stream.host_task([src, dst] { copy_now(src, dst); });
    return;
  }
  const cudaStream_t handle = cuda_stream(stream);
  const bool one_device = src.device() == dst.device();
  LONGHAUL_CHECK(src.device() == stream.device() || dst.device() == stream.device(),
                 "copy on stream '", stream.name(), "' of ", to_string(stream.device()), " from ",
                 to_string(src.device()), " to ", to_string(dst.device()));
  if (src.dtype() == dst.dtype() && src.contiguous() && dst.contiguous()) {
    if (from_host || to_host) check_pinned(from_host ? src.data() : dst.data(), stream);
    // The kind follows from the addresses.
    LONGHAUL_CUDA_CHECK(cudaMemcpyAsync(
        dst.data(), src.data(), static_cast<std::size_t>(dst.bytes()), cudaMemcpyDefault, handle));
    return;
  }
  LONGHAUL_CHECK(one_device, "copy between ", to_string(src.device()), " and ",
                 to_string(dst.device()),
                 " needs equal dtypes and contiguous views; pack on one side first");
  cuda_copy_on_device(src, dst, stream);
}

}  // namespace longhaul::runtime::detail

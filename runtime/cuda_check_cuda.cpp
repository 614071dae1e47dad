#include "runtime/cuda_check_impl.h"

#include <string_view>

namespace longhaul::runtime::detail {

void check_cuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  const ExitCode exit = code == cudaErrorMemoryAllocation ? ExitCode::memory : ExitCode::internal;
  const cudaError_t cleared = cudaGetLastError();  // a sticky error stays, whatever is cleared
  std::string_view path(file);
  const auto room = path.find_last_of('/');
  if (room != std::string_view::npos) path.remove_prefix(path.find_last_of('/', room - 1) + 1);
  const std::string who = thread_rank().empty() ? "" : concat(" (", thread_rank(), ")");
  fail(exit, path, ":", line, who, ": CUDA call ", call, " failed: ", cudaGetErrorName(code), ", ",
       cudaGetErrorString(code),
       cleared == code || cleared == cudaSuccess
           ? ""
           : concat("; last error ", cudaGetErrorName(cleared)));
}

void use_device(Device device) {
  LONGHAUL_CHECK(device.kind == DeviceKind::cuda, to_string(device), " is not a CUDA device");
  LONGHAUL_CUDA_CHECK(cudaSetDevice(device.index));
}

}  // namespace longhaul::runtime::detail

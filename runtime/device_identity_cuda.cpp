#include "runtime/cuda_check_impl.h"
#include "runtime/device_identity.h"

namespace longhaul::runtime {

std::string cuda_device_uuid(int index) {
  cudaDeviceProp properties{};
  LONGHAUL_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  std::string text = "GPU-";
  for (const char byte : properties.uuid.bytes) {
    const auto value = static_cast<unsigned char>(byte);
    text += "0123456789abcdef"[value / 16];
    text += "0123456789abcdef"[value % 16];
  }
  return text;
}

}  // namespace longhaul::runtime

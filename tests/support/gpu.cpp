#include "tests/support/gpu.h"

#include "runtime/device.h"

namespace longhaul::test {

std::string no_gpu_reason() {
#ifdef LONGHAUL_HAS_CUDA
  if (runtime::cuda_device_count() > 0) return "";
  return "no CUDA device or driver on this machine";
#else
  return "built without CUDA (configure with --preset cuda)";
#endif
}

}  // namespace longhaul::test

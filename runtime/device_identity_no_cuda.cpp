// The CPU build has no device.
#include "runtime/device_identity.h"
#include "runtime/error.h"

namespace longhaul::runtime {

std::string cuda_device_uuid(int) {
  fail(ExitCode::launch, "this build has no CUDA backend; configure with --preset cuda");
}

}  // namespace longhaul::runtime

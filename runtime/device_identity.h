#pragma once
// Which of the world's CUDA devices one is, whatever number a process gives it.

#include <string>

namespace longhaul::runtime {

/// "GPU-" and 32 hexadecimal digits of its UUID; a part of a device (MIG) has its own. Throws
/// Error(launch) in a CPU build.
std::string cuda_device_uuid(int index);

}  // namespace longhaul::runtime

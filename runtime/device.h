#pragma once
// Where memory lives and work runs.

#include <cstdint>
#include <string>

namespace longhaul::runtime {

enum class DeviceKind : unsigned char { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;  ///< CUDA ordinal; 0 on the CPU
  bool operator==(const Device&) const = default;
};

std::string to_string(Device device);

/// Number of CUDA devices that can be used; 0 in a CPU build or without a driver.
int cuda_device_count();

/// "NVIDIA H100 80GB HBM3". Throws Error(launch) in a CPU build.
std::string cuda_device_name(int index);

/// What a CUDA device has for everybody who uses it, and what of it is free now.
struct DeviceMemory {
  std::int64_t total_bytes = 0, free_bytes = 0;
};
/// Throws Error(launch) in a CPU build.
DeviceMemory cuda_device_memory(int index);

}  // namespace longhaul::runtime

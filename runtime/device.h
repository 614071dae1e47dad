#pragma once
// Where memory lives and work runs.

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

}  // namespace longhaul::runtime

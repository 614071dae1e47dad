#pragma once
// What the CUDA driver and NCCL read from the environment, once, at their first call.

namespace longhaul::runtime {

/// Sets it, where the user has not. A program calls this before it has threads, which might read
/// the environment at the same time; else the first use of a device does it. Nothing in a CPU
/// build.
void set_device_environment();

}  // namespace longhaul::runtime

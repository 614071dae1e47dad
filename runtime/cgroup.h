#pragma once
// What the control groups of this process allow it: containers and batch systems limit time and
// memory there, where neither the CPU set nor the machine's size shows it.

#include <cstdint>
#include <filesystem>
#include <optional>

namespace longhaul::runtime {

/// The tightest limits of the process's group and of all groups around it, of version 1 and 2; what
/// no group limits is absent. All processes of a group share them.
struct CgroupLimits {
  std::optional<double> cores;  ///< seconds of CPU a second
  std::optional<std::int64_t> memory_bytes;
};

/// `root` stands before /proc and the mount points, for tests. What cannot be read limits nothing.
CgroupLimits cgroup_limits(const std::filesystem::path& root = "/");

/// Memory that this host's processes may use together: the machine's, or its part that the groups
/// allow.
std::int64_t node_memory_bytes();

}  // namespace longhaul::runtime

#include "runtime/cgroup.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;

/// Where a hierarchy is mounted: `folder` shows the groups from `group` on.
struct Mount {
  bool version_2 = false;
  std::string controllers;  // of version 1, "rw,cpu,cpuacct"
  fs::path folder, group;
};

bool lists(const std::string& list, const std::string& word) {
  std::istringstream words(list);
  for (std::string other; std::getline(words, other, ',');) {
    if (other == word) return true;
  }
  return false;
}

/// A path of mountinfo, where "\040" is a blank.
std::string unescaped(const std::string& text) {
  std::string path;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      path += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      path += text[i];
    }
  }
  return path;
}

std::vector<Mount> cgroup_mounts(const fs::path& root) {
  std::vector<Mount> mounts;
  std::ifstream lines(root / "proc/self/mountinfo");
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word, group, folder, type, source, options;
    words >> word >> word >> word >> group >> folder;
    while (words >> word && word != "-") continue;
    words >> type >> source >> options;
    if (type != "cgroup" && type != "cgroup2") continue;
    mounts.push_back({type == "cgroup2", options,
                      root / fs::path(unescaped(folder)).relative_path(), unescaped(group)});
  }
  return mounts;
}

/// The first number of a file; nothing for "max" or a file that is not there.
std::optional<double> number_in(const fs::path& file, int position = 0) {
  std::ifstream words(file);
  std::string word;
  for (int i = 0; i <= position; ++i) words >> word;
  if (!words || word == "max") return std::nullopt;
  try {
    return std::stod(word);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

template <class T>
void tighten(std::optional<T>& limit, T other) {
  limit = limit ? std::min(*limit, other) : other;
}

void tighten_cores(CgroupLimits& limits, std::optional<double> quota,
                   std::optional<double> period) {
  if (quota && period && *quota > 0 && *period > 0) tighten(limits.cores, *quota / *period);
}

void tighten_memory(CgroupLimits& limits, std::optional<double> bytes) {
  constexpr double kNone = 1e18;  // version 1 writes "no limit" as the largest number of pages
  if (bytes && *bytes > 0 && *bytes < kNone)
    tighten(limits.memory_bytes, static_cast<std::int64_t>(*bytes));
}

void read_group(const Mount& mount, const fs::path& folder, CgroupLimits& limits) {
  if (mount.version_2) {
    tighten_cores(limits, number_in(folder / "cpu.max"), number_in(folder / "cpu.max", 1));
    tighten_memory(limits, number_in(folder / "memory.max"));
    return;
  }
  if (lists(mount.controllers, "cpu")) {
    tighten_cores(limits, number_in(folder / "cpu.cfs_quota_us"),
                  number_in(folder / "cpu.cfs_period_us"));
  }
  if (lists(mount.controllers, "memory"))
    tighten_memory(limits, number_in(folder / "memory.limit_in_bytes"));
}

/// From the group `own` up to the topmost one that the mount shows.
void read_groups(const Mount& mount, const fs::path& own, CgroupLimits& limits) {
  fs::path below = own.lexically_relative(mount.group);
  // A group outside of what is mounted, as a container may see it: only the mount is known.
  if (below.empty() || *below.begin() == "..") below = ".";
  for (fs::path at = (mount.folder / below).lexically_normal();; at = at.parent_path()) {
    if (!at.has_filename()) at = at.parent_path();
    read_group(mount, at, limits);
    if (at == mount.folder || !at.has_relative_path()) return;
  }
}

}  // namespace

CgroupLimits cgroup_limits(const fs::path& root) {
  CgroupLimits limits;
  const std::vector<Mount> mounts = cgroup_mounts(root);
  std::ifstream lines(root / "proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {  // "4:cpu,cpuacct:/a/b", "0::/a/b"
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path own = line.substr(second + 1);
    for (const Mount& mount : mounts) {
      const bool same =
          mount.version_2
              ? controllers.empty()
              : (lists(controllers, "cpu") && lists(mount.controllers, "cpu")) ||
                    (lists(controllers, "memory") && lists(mount.controllers, "memory"));
      if (same) read_groups(mount, own, limits);
    }
  }
  return limits;
}

std::int64_t node_memory_bytes() {
  const auto physical =
      static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
  return std::min(physical, cgroup_limits().memory_bytes.value_or(physical));
}

}  // namespace longhaul::runtime

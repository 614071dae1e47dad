#include "runtime/threads.h"

#include <sys/resource.h>

#include <fstream>

#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::runtime::detail {
namespace {

/// The rest of the first line that begins with `start`; empty when there is none.
std::string line_after(const std::string& path, const std::string& start) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(start)) continue;
    const std::size_t value = line.find_first_not_of(" \t", start.size());
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

/// ", TEXT WHERE" for a limit that is a number.
std::string limit_text(const std::string& value, const std::string& where) {
  if (value.empty() || value.find_first_not_of("0123456789") != std::string::npos) return "";
  return concat(", ", value, " ", where);
}

/// Empty where there is none.
std::string soft_limit(int resource, rlim_t unit) {
  rlimit limit = {};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0 ||
      limit.rlim_cur == RLIM_INFINITY)
    return "";
  return concat(limit.rlim_cur / unit);
}

}  // namespace

void thread_refused(std::string_view what, const std::system_error& error) {
  const std::string group = line_after("/proc/self/cgroup", "0::");
  std::string limits =
      limit_text(soft_limit(RLIMIT_NPROC, 1), "threads of this user (ulimit -u)") +
      limit_text(line_after("/sys/fs/cgroup" + group + "/pids.max", ""),
                 "threads of this job (pids.max of its cgroup)") +
      limit_text(line_after("/proc/sys/kernel/threads-max", ""), "threads of this machine") +
      limit_text(soft_limit(RLIMIT_STACK, 1024), "KiB for the stack of each (ulimit -s)") +
      limit_text(soft_limit(RLIMIT_AS, 1024), "KiB of address space (ulimit -v)");
  const std::string threads = line_after("/proc/self/status", "Threads:");
  fail(ExitCode::launch, "the system refused the thread of ", what, " (", error.code().message(),
       "); this process has ", threads.empty() ? "?" : threads, " of them, and the limits are",
       limits.empty() ? " unknown" : limits.substr(1),
       "; start fewer ranks on a node, set debug.threads lower, or raise the limit");
}

}  // namespace longhaul::runtime::detail

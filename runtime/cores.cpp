#include "runtime/cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string_view>

#include "runtime/cgroup.h"
#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

/// The variables by which a user says how threads of GNU's, Intel's and LLVM's OpenMP wait.
constexpr const char* kWaitVariables[] = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"};

/// How often GNU's OpenMP looks before a thread sleeps, some 20 us; its own 300,000 are
/// milliseconds. Without any, steps of small models lose a seventh on cores of their own; with
/// 10,000, half on cores that others use too.
constexpr const char* kSpins = "1000";

/// CPUs of the affinity mask, whose size the kernel alone knows.
std::vector<int> own_cpus() {
  for (int most = CPU_SETSIZE; most <= 1 << 20; most *= 2) {
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(most));
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    std::vector<int> cpus;
    if (sched_getaffinity(0, bytes, set) == 0) {
      for (int cpu = 0; cpu < most; ++cpu) {
        if (CPU_ISSET_S(static_cast<std::size_t>(cpu), bytes, set)) cpus.push_back(cpu);
      }
    }
    CPU_FREE(set);
    if (!cpus.empty()) return cpus;
  }
  return {0};
}

int within_quota(int cores, double quota) {
  return quota > 0 ? std::clamp(static_cast<int>(std::ceil(quota)), 1, cores) : cores;
}

/// The program's own file by name, so that tools go on showing it under that name.
std::string own_path() {
  char path[4096];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof path);
  return length > 0 && static_cast<std::size_t>(length) < sizeof path
             ? std::string(path, static_cast<std::size_t>(length))
             : std::string();
}

}  // namespace

RankCores own_cores(const std::string& host) {
  return {host, own_cpus(), cgroup_limits().cores.value_or(0)};
}

std::vector<CoreShare> share_cores(std::span<const RankCores> ranks) {
  struct Host {
    int ranks = 0;
    std::map<int, int> users;  // by CPU
    double quota = 0;
  };
  std::map<std::string, Host> hosts;
  for (const RankCores& rank : ranks) {
    Host& host = hosts[rank.host];
    ++host.ranks;
    for (const int cpu : rank.cpus) ++host.users[cpu];
    host.quota = std::max(host.quota, rank.quota);
  }
  std::vector<CoreShare> shares;
  for (const RankCores& rank : ranks) {
    const Host& host = hosts[rank.host];
    CoreShare share;
    share.ranks = host.ranks;
    share.host_cores = within_quota(static_cast<int>(host.users.size()), host.quota);
    share.own_cores = within_quota(static_cast<int>(rank.cpus.size()), host.quota);
    double cores = 0;
    for (const int cpu : rank.cpus) cores += 1.0 / host.users.at(cpu);
    if (host.quota > 0) cores = std::min(cores, static_cast<double>(share.host_cores) / host.ranks);
    constexpr double kRounding = 1e-9;  // of sums of thirds
    share.threads = std::max(1, static_cast<int>(cores + kRounding));
    shares.push_back(share);
  }
  return shares;
}

int available_cores() { return share_cores(std::vector{own_cores("")}).front().own_cores; }

int threads_of_environment() {
  const char* given = std::getenv("OMP_NUM_THREADS");
  return given == nullptr ? 0 : std::max(0, std::atoi(given));
}

void wait_passively(char** argv) {
  for (const char* variable : kWaitVariables) {
    if (std::getenv(variable) != nullptr) return;
  }
  const char* preloaded = std::getenv("LD_PRELOAD");
  if (preloaded != nullptr &&
      std::string_view(preloaded).find("vgpreload") != std::string_view::npos)
    return;
  const std::string path = own_path();
  if (path.empty() || ::setenv("OMP_WAIT_POLICY", "passive", 0) != 0) return;
  static_cast<void>(::setenv("GOMP_SPINCOUNT", kSpins, 0));
  ::execv(path.c_str(), argv);
  // It did not start: what runs on waits as before, and says so.
  ::unsetenv("OMP_WAIT_POLICY");
  ::unsetenv("GOMP_SPINCOUNT");
}

std::string wait_policy_text() {
  for (const char* variable : kWaitVariables) {
    const char* value = std::getenv(variable);
    if (value == nullptr) continue;
    if (variable == std::string_view(kWaitVariables[0]) && std::string_view(value) == "passive")
      return "waiting passively";
    return concat("waiting as ", variable, "=", value, " says");
  }
  return "spinning while they wait (OMP_WAIT_POLICY=passive could not be set)";
}

}  // namespace longhaul::runtime

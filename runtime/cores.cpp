#include "runtime/cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace longhaul::runtime {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(
      1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));  // more cores than the set holds
}

int host_cores(int local_size) {
  const int online = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  const int own = available_cores();
  // A rank bound to fewer cores than the host has is taken to have them for itself.
  return own < online ? std::min(online, own * local_size) : online;
}

int threads_per_rank(int local_size) {
  const char* given = std::getenv("OMP_NUM_THREADS");
  if (given != nullptr && std::atoi(given) > 0) return std::atoi(given);
  return std::max(1, std::min(available_cores(), host_cores(local_size) / local_size));
}

}  // namespace longhaul::runtime

#pragma once
// How many cores a rank may use, and how its threads wait for work.

#include <span>
#include <string>
#include <vector>

namespace longhaul::runtime {

/// What one rank may run on.
struct RankCores {
  std::string host;
  std::vector<int> cpus;  ///< of its CPU set, which a launcher may have narrowed; ascending
  double quota = 0;       ///< of its control groups (CgroupLimits::cores), for all of them; 0: none
};
/// Of this process.
RankCores own_cores(const std::string& host);

/// Of one rank among those of its host.
struct CoreShare {
  int ranks = 1;       ///< on this host
  int host_cores = 1;  ///< that these may keep busy together
  int own_cores = 1;   ///< that this one may keep busy while the others rest
  int threads = 1;     ///< for which there are cores while all ranks run; at least 1
};
/// By rank. Each CPU is shared evenly by the ranks whose sets hold it, and a quota by all ranks of
/// the host; a part of a core that a quota leaves over counts as one.
std::vector<CoreShare> share_cores(std::span<const RankCores> ranks);

/// Cores that this process may keep busy.
int available_cores();

/// $OMP_NUM_THREADS when it is a number above 0, else 0.
int threads_of_environment();

/// Makes the threads of OpenMP sleep after a moment where they wait, not spin, which costs other
/// programs their time, and this one its own when they share cores: starts this program again, in
/// this process, with OMP_WAIT_POLICY=passive and a small GOMP_SPINCOUNT, because OpenMP reads it
/// before main() runs. Does nothing where the environment says how threads wait, or under a tool
/// that would not follow (Valgrind). For the first line of main().
void wait_passively(char** argv);

/// "waiting passively", or what the environment says instead.
std::string wait_policy_text();

}  // namespace longhaul::runtime

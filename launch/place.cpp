#include "launch/place.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "runtime/comm/gather.h"
#include "runtime/comm/gather_cores.h"
#include "runtime/peak.h"

namespace longhaul::launch {
namespace {

/// "2 threads", "1 to 2 threads".
std::string range_text(int least, int most, const char* noun) {
  const std::string range =
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most);
  return fmt::format("{} {}{}", range, noun, most == 1 ? "" : "s");
}

std::string cores_text(const std::vector<runtime::CoreShare>& ranks,
                       const std::vector<int>& threads, const std::string& source) {
  const auto [fewest, most] = std::ranges::minmax(threads);
  const auto [small, large] = std::ranges::minmax(ranks, {}, &runtime::CoreShare::host_cores);
  const bool hosts = std::ssize(ranks) > ranks.front().ranks;
  std::string text =
      fmt::format("{} a rank{} on {}{}", range_text(fewest, most, "thread"), source,
                  range_text(small.host_cores, large.host_cores, "core"), hosts ? " a host" : "");
  const int online = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  if (!hosts && large.host_cores < online)
    text += fmt::format(" of the host's {} (CPU set or control group)", online);
  // Evenly spread ranks: those of the first host stand for all.
  const int together = ranks.front().ranks * most;
  if (together > ranks.front().host_cores)
    text += fmt::format(", which {} threads share", together);
  return text + ", " + runtime::wait_policy_text();
}

}  // namespace

Place place_rank(const TrainConfig& config, runtime::Communicator& world,
                 const Location& location) {
  const auto given = static_cast<int>(config.debug.threads);
  const int environment = runtime::threads_of_environment();
  const std::vector<runtime::CoreShare> ranks = runtime::gather_cores(world, location.host);
  std::vector<int> threads;
  for (const runtime::CoreShare& share : ranks)
    threads.push_back(given > 0 ? given : environment > 0 ? environment : share.threads);
  const auto rank = static_cast<std::size_t>(world.rank());
  const std::string source = given > 0         ? " (debug.threads)"
                             : environment > 0 ? " (OMP_NUM_THREADS)"
                                               : "";
  return {location, ranks[rank], threads[rank], cores_text(ranks, threads, source), {}};
}

double measure_peak_flops(runtime::Communicator& world, const Place& place,
                          const runtime::Stream& stream) {
  double host = 0;
  if (place.local_rank == 0) {
    const int own = place.cores.own_cores;
    host = runtime::measure_fma_flops(own, 0.2) * place.cores.host_cores / own;
  }
  double total = 0;
  for (const auto& rank :
       runtime::gather_numbers(world, {host}, stream, runtime::deadline_in(3600))) {
    total += rank[0];
  }
  return total;
}

}  // namespace longhaul::launch

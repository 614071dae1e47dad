#include "launch/place.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "launch/bench_gemm.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/gather_cores.h"
#include "runtime/comm/launcher.h"
#include "runtime/counted.h"
#include "runtime/error.h"
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
  Place place{location, ranks[rank], threads[rank], cores_text(ranks, threads, source)};
  if (on_cuda(config)) {
    const bool may_share = config.comm.backend == "loopback" || config.device.share;
    place.devices = cuda_devices(
        world, {location.host, location.local_rank, may_share, "device.kind = \"cuda\""});
    place.device = {runtime::DeviceKind::cuda, place.devices[rank].index};
    place.device_memory_bytes = runtime::cuda_device_memory(place.device.index).total_bytes;
  }
  return place;
}

PeakFlops measure_peak_flops(runtime::Communicator& world, const Place& place, runtime::DType dtype,
                             const runtime::Stream& compute, const runtime::Stream& stream) {
  PeakFlops peak;
  double own = 0;
  if (place.devices.empty()) {
    const runtime::Unit unit = runtime::kernel_unit(dtype);
    peak.convention = fmt::format(
        "{} in registers, on all cores of the ranks",
        unit == runtime::Unit::tiles ? "bfloat16 products of AMX tiles" : "float32 multiply-adds");
    if (place.local_rank == 0) {
      const int cores = place.cores.own_cores;
      own = runtime::measure_peak(unit, cores, 0.2).median * place.cores.host_cores / cores;
    }
  } else {
    peak.convention =
        fmt::format("{} matmul of 8,192 x 8,192 matrices, measured on each GPU at the start",
                    runtime::name(dtype));
    if (ranks_beside(place.devices, world.rank()).front() == world.rank())
      own = measure_gemm(dtype, {.warm_up = 3, .most = 10, .seconds = 0.2}, compute)
                .flops_per_second();
  }
  for (const auto& rank :
       runtime::gather_numbers(world, {own}, stream, runtime::deadline_in(3600))) {
    peak.flops += rank[0];
  }
  return peak;
}

void require_no_launcher(int ranks) {
  const int started = runtime::claimed_place(runtime::process_environment()).size;
  if (started <= 1) return;
  runtime::fail(runtime::ExitCode::launch, "comm.backend = \"loopback\" runs ",
                runtime::counted(ranks, "rank"), " in one process, but the launcher started ",
                started, "; start it without mpirun, or set comm.backend = \"mpi\"");
}

runtime::MpiOptions mpi_options(const TrainConfig& config) {
  return {.timeout_seconds = config.comm.timeout_seconds,
          .share_memory = config.comm.shared_memory == "auto" && !on_cuda(config)};
}

Location location_of(const runtime::MpiSession& session, const TrainConfig& config,
                     const std::string& communicator, RunClaim* claim) {
  return {session.local_rank(), session.host_name(), communicator, claim,
          mpi_options(config).share_memory ? session.sharing_text() : ""};
}

std::optional<runtime::NcclOptions> nccl_options(const TrainConfig& config, const Place& place) {
  if (config.comm.backend != "nccl") return std::nullopt;
  runtime::NcclOptions nccl;
  nccl.device = place.device.index;
  nccl.timeout_seconds = config.comm.timeout_seconds;
  nccl.max_thread_blocks = static_cast<int>(config.comm.nccl_max_ctas);
  nccl.share_device = share_devices(place.devices);
  return nccl;
}

}  // namespace longhaul::launch

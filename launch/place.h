#pragma once
// Where a rank of a run is, and with how many threads it works.

#include <cstdint>
#include <string>

#include "launch/device.h"
#include "launch/train_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/mpi.h"
#include "runtime/cores.h"

namespace longhaul::launch {

class RunClaim;

/// What the launcher says, and what rank 0 holds.
struct Location {
  int local_rank = 0;  ///< on its host
  std::string host;
  std::string communicator;   ///< see RunHeader
  RunClaim* claim = nullptr;  ///< of rank 0: the folders are this run's
  std::string lending = {};   ///< MpiSession::sharing_text(); empty where ranks share nothing
};

struct Place : Location {
  runtime::CoreShare cores;
  int threads = 1;  ///< OpenMP threads of this rank's compute
  std::string
      cores_text;  ///< "2 threads a rank on 2 cores, waiting passively"; the same on all ranks
  std::string memory_text = {};  ///< see check_memory()
  /// Of all ranks, in rank order; empty on the CPU.
  std::vector<RankDevice> devices = {};
  runtime::Device device = {};           ///< this rank's
  std::int64_t device_memory_bytes = 0;  ///< of that GPU; 0 on the CPU
};
/// Threads: debug.threads, else $OMP_NUM_THREADS, else the rank's share of its host's cores.
/// Devices: see cuda_devices(). Collective.
Place place_rank(const TrainConfig& config, runtime::Communicator& world, const Location& location);

/// What MFU divides by.
struct PeakFlops {
  double flops = 0;        ///< a second, of all that the ranks compute on
  std::string convention;  ///< what was measured, in words
};
/// On the CPU the rate of runtime::kernel_unit(dtype) of the cores that all ranks may use, measured
/// by one rank of each host while the others wait. On CUDA the rate of a large matmul of `dtype`,
/// of every device that a rank computes on, measured on the trainer's own stream by one rank of
/// each. Collective.
PeakFlops measure_peak_flops(runtime::Communicator& world, const Place& place, runtime::DType dtype,
                             const runtime::Stream& compute, const runtime::Stream& stream);

/// Where `ranks` are threads of this process: throws Error(launch) where a launcher has started
/// several.
void require_no_launcher(int ranks);

/// Ranks on the CPU share memory unless comm.shared_memory is "off".
runtime::MpiOptions mpi_options(const TrainConfig& config);
/// What a rank of MPI knows of its place; `communicator` as in Location.
Location location_of(const runtime::MpiSession& session, const TrainConfig& config,
                     const std::string& communicator, RunClaim* claim);

/// What NCCL communicators of this rank are made with; none where ranks use another backend.
std::optional<runtime::NcclOptions> nccl_options(const TrainConfig& config, const Place& place);

}  // namespace longhaul::launch

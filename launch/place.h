#pragma once
// Where a rank of a run is, and with how many threads it works.

#include <cstdint>
#include <string>

#include "launch/train_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/cores.h"

namespace longhaul::launch {

class RunClaim;

/// What the launcher says, and what rank 0 holds.
struct Location {
  int local_rank = 0;  ///< on its host
  std::string host;
  std::string communicator;   ///< see RunHeader
  RunClaim* claim = nullptr;  ///< of rank 0: the folders are this run's
};

struct Place : Location {
  runtime::CoreShare cores;
  int threads = 1;  ///< OpenMP threads of this rank's compute
  std::string
      cores_text;  ///< "2 threads a rank on 2 cores, waiting passively"; the same on all ranks
  std::string memory_text;  ///< see check_memory()
};
/// debug.threads, else $OMP_NUM_THREADS, else the rank's share of its host's cores. Collective.
Place place_rank(const TrainConfig& config, runtime::Communicator& world, const Location& location);

/// fp32 FMA rate of the cores that all ranks may use, measured by one rank of each host while the
/// others wait. Collective.
double measure_peak_flops(runtime::Communicator& world, const Place& place,
                          const runtime::Stream& stream);

}  // namespace longhaul::launch

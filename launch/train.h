#pragma once
// `longhaul train`: the training loop, readable top to bottom in train.cpp.

#include <string>
#include <vector>

namespace longhaul::launch {

struct TrainOptions {
  std::string config_path;
  std::vector<std::string> overrides;  ///< "section.key=value"
};

/// Trains as one rank of what mpirun or srun started, or as all ranks with comm.backend =
/// "loopback". Returns 0; after SIGUSR1, SIGTERM, SIGINT or SIGHUP 75, with a checkpoint of the
/// step at hand, or 128 + the signal when checkpoint.enable is false. Throws Error for everything
/// else.
int run_train(const TrainOptions& options);

}  // namespace longhaul::launch

#include "launch/legality.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace longhaul::launch {

std::vector<std::string> illegal_reasons(const runtime::TrainConfig& config,
                                         const runtime::BuildInfo& build) {
  std::vector<std::string> reasons;
  // The ring takes every mask (all are slices) over every layout, in both dtypes and wire dtypes.
  if (config.comm.backend == "nccl") {
    if (!build.cuda) {
      reasons.emplace_back(
          "comm.backend = \"nccl\": this build has no CUDA; use \"mpi\" or \"loopback\", or build "
          "the preset "
          "`cuda`");
    }
    reasons.emplace_back(
        "comm.backend = \"nccl\": nccl moves device memory, and the model's dense operations run "
        "on the CPU "
        "only; use \"mpi\" or \"loopback\" (`longhaul attention --communicator nccl` is what runs "
        "on devices)");
  }
  return reasons;
}

void require_legal(const runtime::TrainConfig& config) {
  const std::vector<std::string> reasons = illegal_reasons(config, runtime::build_info());
  if (reasons.empty()) return;
  std::string text = "this combination does not run:";
  for (const std::string& reason : reasons) text += "\n" + reason;
  runtime::fail(runtime::ExitCode::config, text);
}

}  // namespace longhaul::launch

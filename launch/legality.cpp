#include "launch/legality.h"

#include "launch/batches.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

/// Runs a parser and keeps what it objects to.
template <class Parse>
void collect(std::vector<std::string>& reasons, const char* key, const Parse& parse) {
  try {
    parse();
  } catch (const runtime::Error& error) {
    reasons.push_back(std::string(key) + ": " + error.what());
  }
}

}  // namespace

std::vector<std::string> illegal_reasons(const runtime::TrainConfig& config) {
  std::vector<std::string> reasons;
  const runtime::ParallelismConfig& p = config.parallelism;
  collect(reasons, "parallelism.context_parallel_scheme",
          [&] { parallel::scheme_from_name(p.context_parallel_scheme); });
  collect(reasons, "parallelism.context_parallel_layout",
          [&] { parallel::layout_from_name(p.context_parallel_layout); });
  collect(reasons, "data.mask", [&] { mask_from_name(config.data.mask); });
  if (config.comm.backend == "nccl") {
    reasons.push_back(
        "comm.backend = \"nccl\": training on CUDA devices does not exist yet, only its attention "
        "does "
        "(longhaul attention --communicator nccl); use \"mpi\" or \"loopback\"");
  }
  if (config.training.dtype != runtime::DType::float32 &&
      config.training.dtype != runtime::DType::bfloat16) {
    reasons.push_back(std::string("training.dtype = \"") + runtime::name(config.training.dtype) +
                      "\": activations are float32 or bfloat16");
  }
  return reasons;
}

void require_legal(const runtime::TrainConfig& config) {
  std::string text;
  for (const std::string& reason : illegal_reasons(config))
    text += (text.empty() ? "" : "\n") + reason;
  if (!text.empty()) throw runtime::Error(runtime::ExitCode::config, text);
}

}  // namespace longhaul::launch

#include "launch/weight_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "launch/checkpoint_path.h"
#include "launch/config_changes.h"
#include "launch/model.h"
#include "runtime/comm/gather.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/hash.h"
#include "runtime/io/host_rows.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {

namespace fs = std::filesystem;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr double kSeconds = 3600;  // the slowest rank's disk

bool is_hf_folder(const fs::path& path) {
  std::error_code unknown;
  return fs::exists(path / kHfConfigName, unknown);
}

CheckpointPlace require_checkpoint(const fs::path& path) {
  const std::optional<CheckpointPlace> place = find_checkpoint(path);
  if (place) return *place;
  std::error_code unknown;
  fail(ExitCode::data, path.string(),
       fs::exists(path, unknown) ? ": holds no weights" : ": does not exist",
       "; expected a Hugging Face folder (config.json beside *.safetensors), a checkpoint, or a "
       "folder of checkpoints");
}

}  // namespace

CheckpointWeights::CheckpointWeights(runtime::Checkpoint checkpoint)
    : checkpoint_(std::move(checkpoint)),
      model_(checkpoint_model(checkpoint_.metadata(), checkpoint_.path().string())) {}

std::string CheckpointWeights::text() const {
  return fmt::format("the checkpoint of step {}", checkpoint_.metadata().step);
}

std::string CheckpointWeights::digest() const {
  const runtime::CheckpointMetadata& metadata = checkpoint_.metadata();
  runtime::Digest digest;
  digest.update(metadata.config);
  digest.update(fmt::format("\n{} {}", metadata.step, metadata.tokens));
  for (const runtime::TensorInfo& tensor : checkpoint_.tensors()) digest.update("\n" + tensor.name);
  return digest.hex();
}

std::optional<HfOrigin> CheckpointWeights::origin() const {
  return origin_of(checkpoint_.metadata().extra, path().string());
}

std::vector<TrainedRun> CheckpointWeights::runs() const {
  return trained_runs(checkpoint_.metadata(), path().string());
}

/// Beside the optimizer's state, which has the names of parameters behind a prefix.
void CheckpointWeights::require(const parallel::ParameterTable& table) const {
  for (const parallel::Parameter& parameter : table.parameters()) {
    const std::string& name = parameter.name;
    if (!checkpoint_.has(name))
      fail(ExitCode::data, path().string(), ": has no tensor '", name, "'");
    const runtime::TensorInfo& tensor = checkpoint_.tensor(name);
    if (tensor.sizes != parameter.sizes || tensor.dtype != runtime::DType::float32)
      fail(ExitCode::data, path().string(), ": tensor '", name,
           "' is of another size or dtype than in the model of its configuration");
  }
}

void CheckpointWeights::read(const parallel::Parameter& parameter, std::int64_t begin,
                             std::int64_t end, std::span<float> out) const {
  std::vector<std::int64_t> sizes = parameter.sizes, start(sizes.size(), 0);
  start[0] = begin;
  sizes[0] = end - begin;
  checkpoint_.read(parameter.name, start, runtime::ops::host_view(out, sizes));
}

std::unique_ptr<WeightSource> open_weights(const fs::path& path) {
  if (is_hf_folder(path)) return std::make_unique<HfFolder>(path);
  const CheckpointPlace place = require_checkpoint(path);
  return std::make_unique<CheckpointWeights>(runtime::Checkpoint::open(place.folder, place.step));
}

std::unique_ptr<WeightSource> open_weights(const fs::path& path, runtime::Communicator& comm,
                                           const runtime::Stream& stream) {
  std::unique_ptr<WeightSource> source;
  std::optional<CheckpointPlace> place;
  std::string verdict(1, '\0');  // an exit code, and why, or the digest of what a rank reads
  const auto attempt = [&](const auto& work) {
    try {
      verdict += work();
    } catch (const runtime::Error& error) {
      verdict = static_cast<char>(error.code()) + std::string(error.what());
    }
    const std::vector<std::string> verdicts =
        runtime::gather_texts(comm, verdict, stream, runtime::deadline_in(kSeconds));
    for (std::size_t rank = 0; rank < verdicts.size(); ++rank) {
      const std::string& other = verdicts[rank];
      if (other[0] != '\0')
        fail(static_cast<ExitCode>(other[0]), other.substr(1),
             verdicts.size() > 1 ? fmt::format(" (rank {})", rank) : "");
      if (other != verdicts[0])
        fail(ExitCode::disagree, path.string(), ": rank ", rank,
             " sees other weights there than rank 0; all hosts must see the same folder");
    }
    verdict.assign(1, '\0');
  };
  attempt([&]() -> std::string {
    if (is_hf_folder(path)) {
      source = std::make_unique<HfFolder>(path);
      return source->digest();
    }
    place = require_checkpoint(path);
    return fmt::format("step {}", place->step);
  });
  if (source) return source;
  runtime::Checkpoint checkpoint =
      runtime::Checkpoint::open(place->folder, place->step, comm, stream);
  attempt([&] {
    source = std::make_unique<CheckpointWeights>(std::move(checkpoint));
    return source->digest();
  });
  return source;
}

parallel::ParameterTable parameter_table(const ModelConfig& model) {
  TrainConfig config;
  config.model = model;
  config.training.seq_len = 1;  // no parameter depends on it
  return make_model(config, *model.vocab_size).table();
}

std::int64_t row_elements(const parallel::Parameter& parameter) {
  std::int64_t product = 1;
  for (std::size_t dim = 1; dim < parameter.sizes.size(); ++dim) product *= parameter.sizes[dim];
  return product;
}

void for_each_rows(const parallel::Parameter& parameter,
                   const std::function<void(std::int64_t, std::int64_t)>& visit) {
  const std::int64_t rows = parameter.sizes.front();
  const std::int64_t step = runtime::rows_within(
      runtime::kStagedBytes, row_elements(parameter) * std::int64_t{sizeof(float)});
  for (std::int64_t begin = 0; begin < rows; begin += step)
    visit(begin, std::min(rows, begin + step));
}

}  // namespace longhaul::launch

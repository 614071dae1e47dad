// What a checkpoint holds of a trainer, and what it takes from one.

#include "launch/hf_origin.h"
#include "launch/model.h"
#include "launch/trainer.h"
#include "launch/weight_source.h"
#include "runtime/comm/gather.h"
#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {

using runtime::ExitCode;
using runtime::fail;

std::vector<parallel::FlatState> Trainer::states() const {
  std::vector<parallel::FlatState> states;
  if (optimizer_) states = optimizer_->states();
  states.insert(states.begin(), store_->state());
  return states;
}

std::vector<runtime::TensorSlice> Trainer::checkpoint_slices() const {
  // What every rank holds is written by its owner, like what only the owner holds.
  const auto owned = exchange_->sharding().owned(trainers_->rank());
  std::vector<runtime::TensorSlice> slices;
  for (const parallel::FlatState& state : states()) {
    for (auto& [name, sizes, start, view] : state_boxes(store_->table(), state, owned))
      slices.push_back({std::move(name), std::move(sizes), std::move(start), view,
                        on_device() ? std::optional(compute_) : std::nullopt});
  }
  return slices;
}

/// Numbers of every rank where servers may have waited for what the others do with disks: that
/// takes as long as it may take.
std::vector<std::vector<double>> Trainer::gather_behind_disks(const std::vector<double>& own) {
  const double before = control_comm_->set_timeout(runtime::SaveOptions().timeout_seconds);
  const runtime::Cleanup restore([&] { control_comm_->set_timeout(before); });
  return runtime::gather_numbers(*control_comm_, own, control_stream_, host_deadline());
}

void Trainer::save(const std::filesystem::path& folder, std::int64_t keep_latest_k,
                   std::function<void()> before_change) {
  if (!serves()) write_checkpoint(folder, keep_latest_k, std::move(before_change));
  if (axis_.dedicated > 0) gather_behind_disks({0.0});
}

void Trainer::write_checkpoint(const std::filesystem::path& folder, std::int64_t keep_latest_k,
                               std::function<void()> before_change) {
  TrainConfig config = inputs_.config;
  config.model.vocab_size = inputs_.vocab_size;  // resolved
  compute_.synchronize(host_deadline());
  runtime::CheckpointMetadata metadata;
  metadata.step = completed_steps_;
  metadata.tokens = cursor_ * config.training.seq_len;
  metadata.cursor = cursor_;
  metadata.optimizer_step = optimizer_->updates();
  metadata.seed = static_cast<std::uint64_t>(config.debug.seed);
  metadata.config = to_toml(config);
  metadata.corpus_digest = inputs_.corpus_digest;
  metadata.extra = carried_;
  metadata.extra["seq_len"] = std::to_string(config.training.seq_len);
  runtime::SaveOptions options;
  options.folder = folder;
  options.keep_latest_k = keep_latest_k;
  options.before_change = std::move(before_change);
  runtime::save_checkpoint(options, metadata, checkpoint_slices(), *trainers_, control_stream_);
}

ConfigChanges Trainer::load(const runtime::Checkpoint& checkpoint) {
  const runtime::CheckpointMetadata& metadata = checkpoint.metadata();
  const ResumingRun run{inputs_.config, inputs_.vocab_size, inputs_.corpus_digest};
  const std::string path = checkpoint.path().string();
  ConfigChanges changes = optimizer_ ? require_same_meaning(metadata, path, run)
                                     : require_same_model(metadata, path, run);
  compute_.synchronize(host_deadline());
  const std::vector<parallel::FlatState> all = states();
  const auto& parameters = store_->table().parameters();
  if (optimizer_ && parameters.size() == checkpoint.tensors().size()) {
    fail(ExitCode::data, checkpoint.path().string(),
         ": holds weights alone, without the optimizer's state; a run begins with them by "
         "checkpoint.initial_load_path, in a job.output_dir of its own");
  }
  if (optimizer_ && all.size() * parameters.size() != checkpoint.tensors().size()) {
    fail(ExitCode::data, checkpoint.path().string(), ": holds ", checkpoint.tensors().size(),
         " tensors, the model of this run ", all.size() * parameters.size());
  }
  for (const parallel::FlatState& state : all) {
    for (const parallel::Parameter& parameter : parameters) {
      const std::string name = state.prefix + parameter.name;
      if (!checkpoint.has(name) || checkpoint.tensor(name).sizes != parameter.sizes) {
        fail(ExitCode::data, checkpoint.path().string(), ": tensor '", name,
             "' is missing or of another size than in the model of this run");
      }
    }
    for (const auto& block : state_boxes(store_->table(), state, state.ranges))
      on_device() ? checkpoint.read(block.name, block.start, block.view, compute_)
                  : checkpoint.read(block.name, block.start, block.view);
  }
  store_->values_changed();
  if (optimizer_) optimizer_->set_updates(metadata.optimizer_step);
  completed_steps_ = metadata.step;
  cursor_ = metadata.cursor;
  carry(metadata.extra);
  return changes;
}

void Trainer::carry(const std::map<std::string, std::string>& extra) {
  carried_.clear();
  for (const char* const key : {kOriginKey, kEarlierRunsKey}) {
    if (const auto found = extra.find(key); found != extra.end()) carried_.insert(*found);
  }
}

void Trainer::load_weights(const WeightSource& source) {
  const parallel::ParameterTable& table = store_->table();
  source.require(table);
  compute_.synchronize(host_deadline());
  for (const parallel::Parameter& parameter : table.parameters()) {
    const runtime::TensorView values = store_->value(parameter.name);
    for_each_rows(parameter, [&](std::int64_t begin, std::int64_t end) {
      const runtime::TensorView rows = values.slice(0, begin, end);
      std::vector<float> read(static_cast<std::size_t>(rows.elements()));
      source.read(parameter, begin, end, read);
      runtime::ops::upload(std::move(read), rows, compute_);
      compute_.synchronize(host_deadline());  // one piece at a time in host memory
    });
  }
  store_->values_changed();
  carried_.clear();
  if (const auto origin = source.origin()) carried_[kOriginKey] = to_text(*origin);
  if (const auto runs = source.runs(); !runs.empty()) carried_[kEarlierRunsKey] = to_text(runs);
}

void Trainer::begin() {
  const std::vector<double> first =
      gather_behind_disks({static_cast<double>(completed_steps_), static_cast<double>(cursor_)})
          .front();
  completed_steps_ = static_cast<std::int64_t>(first[0]);
  cursor_ = static_cast<std::int64_t>(first[1]);
}

}  // namespace longhaul::launch

#pragma once
// What a run that goes on from a checkpoint does in another way than the run that made it. Whether
// a key may change is declared with the key, in config_schema.cpp.

#include <cstdint>
#include <string>
#include <vector>

#include "launch/train_config.h"
#include "runtime/io/checkpoint.h"

namespace longhaul::launch {

/// A key whose value is not the checkpoint's.
struct KeyChange {
  std::string key;
  std::string before, now;  ///< as in TOML, or "not set"
};

/// A run's configuration, and what it has resolved to.
struct ResumingRun {
  const TrainConfig& config;
  std::int64_t vocab_size = 0;
  std::string corpus_digest;
};

struct ConfigChanges {
  std::vector<KeyChange> meaning;  ///< the checkpoint's tensors, or its place in the data, would
                                   ///< mean something else
  std::vector<KeyChange> run;      ///< may change, and is told
  std::int64_t next_step = 0;      ///< the first after the checkpoint
  double rate_before = 0;          ///< learning rate of next_step as the checkpoint's
  double rate_now = 0;             ///< configuration has it, and as this one does

  /// A line for each change, and one for a learning rate that jumps.
  std::vector<std::string> lines() const;
};

/// Compares configurations by what they mean: values that were left out, and names with the same
/// meaning, are no change. Throws Error(data) when the checkpoint's cannot be read, or has keys
/// that this program does not know.
ConfigChanges compare_with_checkpoint(const runtime::CheckpointMetadata& checkpoint,
                                      const std::string& path, const ResumingRun& run);

/// The same; throws Error(config) when the meaning has changed, with every such key, both values
/// and what to do. `path`: of the checkpoint, for errors.
ConfigChanges require_same_meaning(const runtime::CheckpointMetadata& checkpoint,
                                   const std::string& path, const ResumingRun& run);

/// The model of a checkpoint, complete and with vocab_size. Throws Error(data) when its
/// configuration does not say it.
ModelConfig checkpoint_model(const runtime::CheckpointMetadata& checkpoint,
                             const std::string& path);

/// What of the data its model saw: the mask, by its first name, and its window. Throws Error(data)
/// when the checkpoint's configuration does not say it.
DataConfig checkpoint_data(const runtime::CheckpointMetadata& checkpoint, const std::string& path);

/// Of a run that only evaluates: the same, but only keys of [model] may not have changed, and of
/// those what turns q and k may. What else has another meaning is told as a change of the run.
ConfigChanges require_same_model(const runtime::CheckpointMetadata& checkpoint,
                                 const std::string& path, const ResumingRun& run);

/// "adamw, lr 0.001 after 5 warm-up steps, cosine to 0.0001 at step 60, ...": how weights are
/// updated.
std::string optimizer_text(const TrainConfig& config);

}  // namespace longhaul::launch

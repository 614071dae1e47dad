#pragma once
// The configuration of a verb, held to all rules and to its corpus.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/train_config.h"
#include "runtime/config/draft.h"
#include "runtime/io/corpus.h"

namespace longhaul::launch {

/// A run's configuration while it is loaded.
class TrainDraft final : public runtime::ConfigDraft {
 public:
  explicit TrainDraft(std::string file) : ConfigDraft(config_schema(), std::move(file)) {}

  TrainConfig config;
  bool reads_files = true;  ///< whether the files that keys name must be there
  runtime::Configuration& configuration() override { return config; }
};

/// Whether a verb reads the files that a configuration names.
enum class NamedFiles : unsigned char { read, unread };

/// Reads the file and the overrides and judges every key and the rules over several. With
/// `world_size` the grid must fill it exactly, and a context_parallel_degree of -1 is resolved.
/// Touches nothing on disk; with `unread` it does not look for corpora either. Throws Error(config)
/// with every problem, each at its place; later rules may add to the draft.
TrainDraft load_config(const std::string& path, const std::vector<std::string>& overrides,
                       std::optional<std::int64_t> world_size = std::nullopt,
                       NamedFiles files = NamedFiles::read);

/// The part of the rules that is on the model: sets what its family completes.
void check_model(TrainDraft& draft);
/// Whether some layer of the model slides, where its keys are good.
bool slides(const TrainDraft& draft);
/// Rules over the keys that are good, but for those on schemes (schemes.h).
void check_rules(TrainDraft& draft, std::optional<std::int64_t> world_size);

/// Writes config.toml into job.output_dir, which exists: the resolved configuration, which loads to
/// the same one. Replaces that of an earlier start. Throws Error(io).
void write_resolved_config(const TrainConfig& config);

/// model.vocab_size, or the corpus's.
std::int64_t model_vocabulary(const TrainConfig& config, const runtime::CorpusInfo& corpus);

}  // namespace longhaul::launch

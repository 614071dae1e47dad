#pragma once
// What an exported folder says of itself, for people.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/hf_config.h"
#include "launch/weight_source.h"

namespace longhaul::launch {

struct ExportFacts {
  std::string checkpoint;             ///< path
  std::optional<std::string> origin;  ///< the folder that the weights came from at first
  std::vector<TrainedRun> runs;       ///< since then
  std::int64_t trained_length = 0;    ///< tokens of their longest sequence; 0: not trained since
  std::string rope_type;              ///< empty: nothing is stretched
  /// Keys of rotary embedding that are not the folder's.
  std::vector<ModelDifference> length_changes;
};

ExportFacts export_facts(const CheckpointWeights& source, const std::optional<HfOrigin>& origin);

/// README.md of the folder `name`.
std::string readme_text(const std::string& name, const ExportFacts& facts,
                        const std::string& dtype);

}  // namespace longhaul::launch

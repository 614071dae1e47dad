#pragma once
// The verb `validate`: everything that can be said about a configuration without running it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/train_config.h"

namespace longhaul::launch {

struct ValidateOptions {
  std::string config_path;
  std::vector<std::string> overrides;  ///< "section.key=value"
  std::optional<std::int64_t> ranks;   ///< resolves the grid for so many
  bool keys = false;                   ///< print the reference of all keys instead
  bool legality = false;               ///< print which schemes suit what instead
};

/// Prints, as TOML with the summary in comments, what the configuration resolves to. Writes no
/// file. Throws Error(config) with every problem, Error(data) for a corpus that is none.
int run_validate(const ValidateOptions& options);

}  // namespace longhaul::launch

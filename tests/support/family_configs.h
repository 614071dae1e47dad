#pragma once
// A small [model] of every family, as lines of a configuration.

#include <map>
#include <string>
#include <vector>

#include "launch/train_config.h"

namespace longhaul::test {

/// "num_hidden_layers" -> "2"; of a table in it, "linear_attn_config.num_heads" -> "2". Two layers,
/// the first of which is linear where the family has such.
using ModelLines = std::map<std::string, std::string>;
ModelLines family_lines(const std::string& family);

/// The section, with tables behind it.
std::string model_section(const ModelLines& lines);

/// A configuration of such a model, as a run has loaded it.
launch::TrainConfig family_config(const ModelLines& lines);

}  // namespace longhaul::test

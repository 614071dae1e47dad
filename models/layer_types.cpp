#include "models/layer_types.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::models {

using runtime::ExitCode;
using runtime::fail;

std::vector<std::string> layer_type_names() { return {kFullAttention, kSlidingAttention}; }

bool is_sliding(const std::string& layer_type) { return layer_type == kSlidingAttention; }

attention::Mask MaskKind::of(const attention::Mask& data) const {
  if (!window) return data;
  LONGHAUL_CHECK(data.is_causal(), "sliding attention of a mask that is not causal");
  return data.within(1 - *window, attention::kUnbounded);
}

LayerMasks::LayerMasks(std::span<const std::string> layer_types, std::int64_t sliding_window,
                       std::int64_t layers) {
  if (!layer_types.empty() && std::ssize(layer_types) != layers) {
    fail(ExitCode::config, "[model] layer_types has ", layer_types.size(),
         " entries; expected one for each of the num_hidden_layers = ", layers);
  }
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string type =
        layer_types.empty() ? kFullAttention : layer_types[static_cast<std::size_t>(layer)];
    if (type != kFullAttention && type != kSlidingAttention) {
      fail(ExitCode::config, "[model] layer_types[", layer, "] is '", type, "'; expected ",
           kFullAttention, " or ", kSlidingAttention);
    }
    std::optional<std::int64_t> window;
    if (is_sliding(type)) window = sliding_window;
    if (window && *window < 1) {
      fail(ExitCode::config, "[model] sliding_window is ", *window,
           "; sliding_attention needs at least 1");
    }
    const auto kind = std::ranges::find(kinds, window, &MaskKind::window);
    of_layer.push_back(static_cast<std::size_t>(kind - kinds.begin()));
    if (kind == kinds.end()) kinds.push_back({window, 0});
    ++kinds[of_layer.back()].layers;
  }
}

attention::HeadMasks masks_of_layers(std::vector<attention::Mask> masks,
                                     std::span<const MaskKind> kinds) {
  if (masks.size() == 1) return std::move(masks[0]);
  std::vector<int> layers;
  for (const MaskKind& kind : kinds) layers.push_back(static_cast<int>(kind.layers));
  return attention::HeadMasks::in_groups(std::move(masks), layers);
}

}  // namespace longhaul::models

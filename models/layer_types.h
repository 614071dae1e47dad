#pragma once
// What a layer's attention sees, in Hugging Face's words: `full_attention`, all that the data's
// mask lets it see; `sliding_attention`, of that the keys j > i - sliding_window of query i.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/head_masks.h"

namespace longhaul::models {

inline constexpr const char* kFullAttention = "full_attention";
inline constexpr const char* kLinearAttention = "linear_attention";
inline constexpr const char* kSlidingAttention = "sliding_attention";

/// {"full_attention", "sliding_attention"}.
std::vector<std::string> layer_type_names();
bool is_sliding(const std::string& layer_type);

/// What some of a model's layers see.
struct MaskKind {
  std::optional<std::int64_t> window = {};  ///< tokens; none: all of the data's mask
  std::int64_t layers = 0;                  ///< how many see it

  /// Of a batch with this mask, which is causal where there is a window, and whose queries see the
  /// tokens just before them, if any.
  attention::Mask of(const attention::Mask& data) const;
};

/// The different masks of a model's layers, in the order in which they come.
struct LayerMasks {
  std::vector<MaskKind> kinds;
  std::vector<std::size_t> of_layer;  ///< each layer's kind

  /// No types: full_attention in all `layers`. Throws Error(config) for an unknown type, other than
  /// `layers` of them, or sliding layers without a window of at least 1.
  LayerMasks(std::span<const std::string> layer_types, std::int64_t sliding_window,
             std::int64_t layers);
};

/// masks[m] is of kind m. All layers' masks in the place of all heads': what spreads tokens by the
/// sum over layers. The mask itself, shared, where there is but one.
attention::HeadMasks masks_of_layers(std::vector<attention::Mask> masks,
                                     std::span<const MaskKind> kinds);

}  // namespace longhaul::models

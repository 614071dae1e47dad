#pragma once
// How q and k are turned by their positions: rotary position embedding (Su et al. 2021, RoFormer)
// and the ways of stretching it to longer contexts, in Hugging Face's words.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::models {

/// `rope_scaling` of a config.json (newer ones: `rope_parameters`): what stretches the wavelengths.
/// What a type has no use for may not be given.
struct RopeScaling {
  /// default, linear, dynamic, llama3, yarn or longrope.
  std::optional<std::string> rope_type;
  std::optional<double> factor;
  std::optional<std::int64_t> original_max_position_embeddings;
  std::optional<double> low_freq_factor, high_freq_factor;             ///< llama3
  std::optional<double> beta_fast, beta_slow, mscale, mscale_all_dim;  ///< yarn
  std::optional<bool> truncate;                                        ///< yarn
  std::optional<double> attention_factor;                              ///< yarn, longrope
  std::vector<double> short_factor, long_factor;                       ///< longrope, [dims / 2]
};

/// What turns q and k of some layers. A layer without one does not turn them.
struct Rope {
  std::int64_t dims = 0;  ///< of a head, the first ones; even
  /// [dims / 2]: pair (i, i + dims/2) turns by this angle a position.
  std::vector<double> frequencies;
  double attention_factor = 1;  ///< of cos and sin
  bool operator==(const Rope&) const = default;
};

}  // namespace longhaul::models

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
  std::optional<std::string> rope_type = {};
  std::optional<double> factor = {};
  std::optional<std::int64_t> original_max_position_embeddings = {};
  std::optional<double> low_freq_factor = {}, high_freq_factor = {};  ///< llama3
  std::optional<double> beta_fast = {}, beta_slow = {}, mscale = {}, mscale_all_dim = {};  ///< yarn
  std::optional<bool> truncate = {};                                                       ///< yarn
  std::optional<double> attention_factor = {};              ///< yarn, longrope
  std::vector<double> short_factor = {}, long_factor = {};  ///< longrope, [dims / 2]
};

/// What turns q and k of some layers. A layer without one does not turn them.
struct Rope {
  std::int64_t dims = 0;  ///< of a head, the first ones; even
  /// [dims / 2]: pair (i, i + dims/2) turns by this angle a position.
  std::vector<double> frequencies;
  double attention_factor = 1;  ///< of cos and sin
  bool operator==(const Rope&) const = default;
};

/// default, linear, dynamic, llama3, yarn, longrope.
std::vector<std::string> rope_types();
/// The type's name where `scaling` gives none, or an older one: "su" is longrope.
std::string rope_type_of(const RopeScaling& scaling);
/// Types that know the length a model was first trained for: llama3, yarn and longrope.
bool takes_original_length(const std::string& rope_type);
/// Types whose frequencies follow from the length of sequences: dynamic and longrope.
bool follows_length(const std::string& rope_type);

/// What a Rope is made from, beside its scaling.
struct RopeBase {
  std::int64_t dims = 0;  ///< even
  double theta = 0;
  /// What the model is made for; of types that ask for it.
  std::optional<std::int64_t> max_position_embeddings = {};
  /// Tokens of the run's sequences, once for all positions; of types that follow it.
  std::int64_t length = 0;
};

/// One thing that is wrong with a scaling.
struct RopeProblem {
  std::string key;   ///< "factor"; "" where it is not the scaling's: `base` says whose
  std::string base;  ///< "rope_theta", "max_position_embeddings"
  bool missing = false;
  std::string expected;  ///< where it is not missing
};
/// Keys that the type needs or has no use for, and values out of their range. `base.length` is not
/// looked at.
std::vector<RopeProblem> problems_of(const RopeBase& base, const RopeScaling& scaling);

/// Of a scaling without problems, in double. `linear`: kaiokendev and Chen et al. 2023 (Position
/// Interpolation); `dynamic`: bloc97 and emozilla (NTK-aware, of the length); `llama3`: Llama 3.1
/// (Grattafiori et al. 2024); `yarn`: Peng et al. 2023 (YaRN); `longrope`: Ding et al. 2024
/// (LongRoPE). Throws Error(internal) for problems, or a type that follows a length that is not
/// given.
Rope make_rope(const RopeBase& base, const RopeScaling& scaling = {});

}  // namespace longhaul::models

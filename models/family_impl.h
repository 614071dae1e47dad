#pragma once
// Private to the families' files: what they share.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/attention_block.h"
#include "models/branch.h"
#include "models/family.h"
#include "models/mlp_block.h"

namespace longhaul::models {

Family llama_family();
Family mistral_family();
Family qwen2_family();
Family qwen3_family();
Family gemma2_family();
Family gemma3_text_family();
Family phi3_family();
Family olmo2_family();
Family qwen3_next_family();
Family qwen3_5_family();
Family kimi_linear_family();
Family granitemoehybrid_family();
Family nemotron_h_family();
Family minimax_family();
Family linear_llama3_family();

// ---- checks. Each says nothing about keys that are not good.

/// num_key_value_heads and head_dim where they are not given, from the heads and the hidden size;
/// heads that divide, an even head_dim where q and k are `turned`.
void check_heads(ModelConfig& config, bool turned, Judge& judge);
/// Of a family that turns q and k, after check_heads(): rope_theta, the dims that turn,
/// max_position_embeddings and the table rope_scaling, whose type gets its newest name.
void check_rope(ModelConfig& config, Judge& judge);
/// Positive, where given.
void check_positive(const std::optional<double>& value, const char* key, Judge& judge);
/// `value` is a multiple of `of`.
void check_multiple(const std::optional<std::int64_t>& value, const char* key,
                    const std::optional<std::int64_t>& of, const char* of_key, Judge& judge);
/// time_step_limit is two numbers, the lower one first.
void check_time_steps(const ModelConfig& config, Judge& judge);
/// Words of layer_types that the family has, one a layer.
void check_layer_types(const ModelConfig& config, std::span<const std::string> words, Judge& judge);

// ---- keys

/// rope_theta, max_position_embeddings and the table rope_scaling.
void rope_keys(ModelConfig& config, FamilyKeys& keys, double theta);

// ---- models

/// Dims of a head that turn: all, or the share partial_rotary_factor.
std::int64_t rotary_dims(const ModelConfig& config);
/// Of keys that check_rope() found good.
Rope rope_of(const ModelConfig& config);

/// Llama's names, which other families have taken over. `layer`: "model.layers.3.".
BlockNames llama_attention(const std::string& layer);
MlpNames llama_mlp(const std::string& layer);

/// Names of what is not a layer's.
struct FamilyNames {
  std::string embedding = "model.embed_tokens.weight", layers = "model.layers.",
              norm = "model.norm.weight", head = "lm_head.weight";
};

/// The masks of a model whose layers of softmax attention, called `word`, see all that the data's
/// mask shows; other blocks go by its documents.
std::vector<MaskKind> one_mask(std::span<const std::string> layers, const char* word);
inline constexpr std::size_t kOneMask = 0;

/// Puts a model together: embedding, layer after layer, head. Parameter group 0 is the embedding,
/// group 1 + l layer l, the last group the final norm and, when it is not tied, the head. Matrices
/// are drawn from N(0, 0.02^2), those that write into the residual stream scaled by 1/sqrt(2
/// layers) (Radford et al. 2019, GPT-2). Weight decay applies to matrices except the embedding, as
/// is common practice.
class Assembly {
 public:
  static constexpr double kStddev = 0.02;

  /// `branch`: of most blocks.
  Assembly(const ModelConfig& config, const BranchShape& branch, FamilyNames names = {});

  /// Begins the next layer; the prefix of its names.
  std::string layer();
  /// A block of that layer, made from a shape and what else it is made from, before its group.
  template <class B, class... Arguments>
  void add(const Arguments&... arguments) {
    parts.blocks.push_back(
        std::make_unique<B>(arguments..., group_, kStddev, residual_stddev_, parts.table));
  }
  /// A matrix of that layer that nothing reads: it is there for its name.
  void add_unused(const std::string& name, std::vector<std::int64_t> sizes);
  /// With the head.
  ModelParts finish();

  ModelParts parts;

 private:
  const ModelConfig& config_;
  const BranchShape branch_;
  const FamilyNames names_;
  const double residual_stddev_;
  int group_ = 0;
};

}  // namespace longhaul::models

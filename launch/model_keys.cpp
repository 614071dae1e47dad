#include "launch/model_keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "launch/config_schema_impl.h"
#include "models/family.h"
#include "models/linear_llama_block.h"
#include "runtime/ops/feature_map.h"

namespace longhaul::launch {
namespace {

using models::FamilyKeys;

constexpr std::string_view kSection = "model";

std::vector<std::string> names(std::span<const char* const> words) {
  return {words.begin(), words.end()};
}

/// With the older name of longrope.
std::vector<std::string> rope_type_words() {
  std::vector<std::string> words = models::rope_types();
  words.emplace_back("su");
  return words;
}

/// Families that people may look for, and why they are none here.
std::vector<std::pair<std::string, std::string>> unbuilt_families() {
  const std::string experts = "its layers have experts, which are not built";
  std::vector<std::pair<std::string, std::string>> all = {
      {"gpt_oss", experts +
                      "; its attention's options are `llama`'s attention_bias, attention_sinks, "
                      "layer_types and rope_scaling"},
      {"gemma3", "it reads images as well as text; the text model alone is `gemma3_text`"},
      {"deepseek_v2", experts + ", and latent attention, which is not either"},
      {"deepseek_v3", experts + ", and latent attention, which is not either"}};
  for (const char* name : {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "llama4"})
    all.emplace_back(name, experts);
  return all;
}

std::vector<runtime::ConfigKey> declare() {
  return {
      {LONGHAUL_KEY(model, architecture, meaning),
       .explanation =
           "Model family, by the model_type of its config.json. Keys of [model] have its "
           "names and meaning; one that a family has no use for is refused.",
       .default_value = "\"llama\"", .choices = models::family_names(),
       .not_choices = unbuilt_families()},
      {LONGHAUL_KEY(model, hidden_size, meaning), .explanation = "Width of the residual stream.",
       .minimum = 1, .maximum = kMaxWidth},
      {LONGHAUL_KEY(model, intermediate_size, meaning), .explanation = "Width of the MLP.",
       .minimum = 1, .maximum = kMaxWidth},
      {LONGHAUL_KEY(model, num_hidden_layers, meaning), .explanation = "Number of layers.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, num_attention_heads, meaning), .explanation = "Query heads of a layer.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, num_key_value_heads, meaning),
       .explanation = "Key and value heads of a layer; must divide num_attention_heads.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, head_dim, meaning),
       .explanation = "Width of a head; even where rotary embedding turns pairs.", .minimum = 2,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, rms_norm_eps, meaning),
       .explanation = "Added to the mean square in RMSNorm.", .minimum = 0, .maximum = 1,
       .above_minimum = true},
      {LONGHAUL_KEY(model, rope_theta, meaning),
       .explanation =
           "Base of the rotary embedding's wavelengths; of `gemma3_text`, in layers that "
           "see all.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, tie_word_embeddings, meaning),
       .explanation = "The output head shares the embedding's weights."},
      {LONGHAUL_KEY(model, vocab_size, meaning),
       .explanation = "Rows of the embedding; at least the corpus's vocabulary size.",
       .derived_default = "the corpus's vocabulary size", .minimum = 1, .maximum = 1 << 30},
      {LONGHAUL_KEY(model, layer_types, meaning),
       .explanation =
           "What each layer is, in its family's words. `full_attention` sees what `data.mask` "
           "says; "
           "`sliding_attention`, of that the last sliding_window tokens, the query's own included, "
           "for causal masks; the others carry a state along their document."},
      {LONGHAUL_KEY(model, sliding_window, meaning),
       .explanation = "Tokens; of `sliding_attention`.", .minimum = 1, .maximum = kMaxTokens},

      {LONGHAUL_KEY(model, max_position_embeddings, meaning),
       .explanation = "Tokens that the model is made for. Some rope_types go by it; it does not "
                      "bound training.seq_len.",
       .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(model, original_max_position_embeddings, meaning),
       .explanation = "Of `[model.rope_scaling]`, where it may stand as well.", .minimum = 1,
       .maximum = kMaxTokens},
      {LONGHAUL_KEY(model, rope_local_base_freq, meaning),
       .explanation = "Base of the wavelengths in `sliding_attention`, which rope_scaling leaves "
                      "as they are.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, attention_bias, meaning),
       .explanation = "The projections q, k, v and o add a bias."},
      {LONGHAUL_KEY(model, mlp_bias, meaning), .explanation = "The MLP's projections add a bias."},
      {LONGHAUL_KEY(model, query_pre_attn_scalar, meaning),
       .explanation = "Scores of attention are divided by its square root.", .minimum = 0,
       .above_minimum = true},
      {LONGHAUL_KEY(model, attn_logit_softcapping, meaning),
       .explanation = "c: scores of attention become c tanh(score / c); 0: they stay.",
       .minimum = 0},
      {LONGHAUL_KEY(model, final_logit_softcapping, meaning),
       .explanation = "c: logits become c tanh(logit / c); 0: they stay.", .minimum = 0},
      {LONGHAUL_KEY(model, attention_weighting, meaning),
       .explanation = "How scores become weights: `softmax`, which sum to 1, or `sigmoid`, each on "
                      "its own (FlashSigmoid).",
       .choices = {"softmax", "sigmoid"}},
      {LONGHAUL_KEY(model, attention_sigmoid_bias, meaning),
       .explanation = "Added to a sigmoid's scores; -ln(training.seq_len) is usual."},
      {LONGHAUL_KEY(model, attention_sinks, meaning),
       .explanation = "A learnt logit for each head in the softmax's denominator that has no value "
                      "(gpt-oss)."},
      {LONGHAUL_KEY(model, use_sliding_window, meaning),
       .explanation = "Whether layers slide; without it sliding_window is idle."},
      {LONGHAUL_KEY(model, max_window_layers, meaning),
       .explanation = "In the place of layer_types: the first layer that slides, from 0.",
       .minimum = 0, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, sliding_window_pattern, meaning),
       .explanation = "In the place of layer_types: every so many layers, the last one is "
                      "`full_attention`.",
       .minimum = 1, .maximum = kMaxHeads},

      {LONGHAUL_KEY(model, partial_rotary_factor, meaning),
       .explanation = "Share of a head's dims that rotary embedding turns, the first ones.",
       .minimum = 0, .maximum = 1},
      {LONGHAUL_KEY(model, full_attention_interval, meaning),
       .explanation = "In the place of layer_types: every so many layers, the last one is "
                      "`full_attention`.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mlp_only_layers, meaning),
       .explanation = "Layers with a dense MLP, from 0; all of them, since experts are not built.",
       .minimum = 0, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, linear_num_key_heads, meaning),
       .explanation = "Query and key heads of a linear layer.", .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, linear_num_value_heads, meaning),
       .explanation = "Value heads of a linear layer, a multiple of its key heads.", .minimum = 1,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, linear_key_head_dim, meaning),
       .explanation = "Width of a linear layer's query and key heads.", .minimum = 1,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, linear_value_head_dim, meaning),
       .explanation = "Width of a linear layer's value heads.", .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, linear_conv_kernel_dim, meaning),
       .explanation = "Width of the causal convolution in tokens.", .minimum = 1, .maximum = 5},

      {LONGHAUL_KEY(model, num_local_experts, meaning),
       .explanation = "Experts of a layer: 0, or of `minimax` 1, whose router weighs 1; more are "
                      "not built.",
       .minimum = 0, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, shared_intermediate_size, meaning),
       .explanation = "Width of the MLP that every token goes through.", .minimum = 1,
       .maximum = kMaxWidth},
      {LONGHAUL_KEY(model, position_embedding_type, meaning),
       .explanation = "Whether q and k are turned by their positions.",
       .choices = {"rope", "nope"}},
      {LONGHAUL_KEY(model, embedding_multiplier, meaning),
       .explanation = "Factor of the embedding's rows.", .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, residual_multiplier, meaning),
       .explanation = "Factor of what a layer's halves add to the residual stream.", .minimum = 0,
       .above_minimum = true},
      {LONGHAUL_KEY(model, attention_multiplier, meaning),
       .explanation = "Factor of the scores of softmax attention, in the place of "
                      "1/sqrt(head_dim).",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, logits_scaling, meaning), .explanation = "Divisor of the logits.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, mamba_n_heads, meaning), .explanation = "State heads of a Mamba layer.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_d_head, meaning), .explanation = "Width of a state head.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_d_state, meaning), .explanation = "Width of its keys.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_n_groups, meaning),
       .explanation = "Key heads of a Mamba layer; must divide its state heads.", .minimum = 1,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_d_conv, meaning),
       .explanation = "Width of the causal convolution in tokens.", .minimum = 1, .maximum = 5},
      {LONGHAUL_KEY(model, mamba_expand, meaning),
       .explanation = "Width of a Mamba layer over hidden_size: mamba_n_heads * mamba_d_head = "
                      "mamba_expand * hidden_size.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_conv_bias, meaning),
       .explanation = "The convolution adds a bias."},
      {LONGHAUL_KEY(model, time_step_limit, meaning),
       .explanation = "Lowest and highest time step of a Mamba layer.", .minimum = 0,
       .maximum = std::numeric_limits<double>::infinity()},

      {LONGHAUL_KEY(model, hybrid_override_pattern, meaning),
       .explanation = "A letter a layer: `M` Mamba, `*` attention, `-` MLP; `E`, experts, is not "
                      "built."},
      {LONGHAUL_KEY(model, layer_norm_epsilon, meaning),
       .explanation = "Added to the mean square in RMSNorm.", .minimum = 0, .maximum = 1,
       .above_minimum = true},
      {LONGHAUL_KEY(model, mamba_num_heads, meaning),
       .explanation = "State heads of a Mamba layer.", .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, mamba_head_dim, meaning), .explanation = "Width of a state head.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, ssm_state_size, meaning), .explanation = "Width of its keys.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, n_groups, meaning),
       .explanation = "Key heads of a Mamba layer; must divide its state heads.", .minimum = 1,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model, conv_kernel, meaning),
       .explanation = "Width of the causal convolution in tokens.", .minimum = 1, .maximum = 5},
      {LONGHAUL_KEY(model, use_conv_bias, meaning), .explanation = "The convolution adds a bias."},

      {LONGHAUL_KEY(model, full_attn_alpha_factor, meaning),
       .explanation = "Factor of the residual around softmax attention."},
      {LONGHAUL_KEY(model, full_attn_beta_factor, meaning),
       .explanation = "Factor of softmax attention's output.", .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, linear_attn_alpha_factor, meaning),
       .explanation = "Factor of the residual around linear attention."},
      {LONGHAUL_KEY(model, linear_attn_beta_factor, meaning),
       .explanation = "Factor of linear attention's output.", .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model, mlp_alpha_factor, meaning),
       .explanation = "Factor of the residual around the MLP."},
      {LONGHAUL_KEY(model, mlp_beta_factor, meaning), .explanation = "Factor of the MLP's output.",
       .minimum = 0, .above_minimum = true},

      {LONGHAUL_KEY(model, linear_attention, meaning),
       .explanation = "Kind of the linear layers: `basic`, without decay; `decay`, RetNet's, a "
                      "constant a head; `simple_gla`, a number a token and head; `gla`, a number a "
                      "token, head and dim.",
       .choices = names(models::linear_llama_kinds())},
      {LONGHAUL_KEY(model, feature_map, meaning),
       .explanation = "What queries and keys of linear layers pass before their product.",
       .choices = names(runtime::ops::feature_map_names())},
      {LONGHAUL_KEY(model, normalize, meaning),
       .explanation = "Linear layers divide by the sum of their weights, in the place of a norm of "
                      "heads; of the `basic` kind."},

      {LONGHAUL_KEY(model, first_k_dense_replace, meaning),
       .explanation = "Layers with a dense MLP, the first ones; all of them, since experts are not "
                      "built.",
       .minimum = 0, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model.rope_scaling, rope_type, meaning),
       .explanation =
           "How wavelengths are stretched to a longer context; each type has keys of its "
           "own below. `dynamic` and `longrope` go by training.seq_len, for all "
           "positions. `su` is an older name of `longrope`.",
       .choices = rope_type_words()},
      {LONGHAUL_KEY(model.rope_scaling, factor, meaning),
       .explanation =
           "How much longer: required of `linear`, `dynamic`, `llama3` and `yarn`; of "
           "`longrope`, in the place of max_position_embeddings over the original length.",
       .minimum = 1},
      {LONGHAUL_KEY(model.rope_scaling, original_max_position_embeddings, meaning),
       .explanation = "Tokens that the model was first trained for; of `llama3`, `yarn` and "
                      "`longrope`.",
       .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(model.rope_scaling, low_freq_factor, meaning),
       .explanation = "Turns over the original length below which wavelengths are stretched by "
                      "factor; required of `llama3`.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, high_freq_factor, meaning),
       .explanation = "Turns above which they stay; required of `llama3`.", .minimum = 0,
       .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, beta_fast, meaning),
       .explanation = "Turns over the original length above which wavelengths stay; of `yarn`.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, beta_slow, meaning),
       .explanation = "Turns below which they are stretched by factor; of `yarn`.", .minimum = 0,
       .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, mscale, meaning),
       .explanation = "With mscale_all_dim, in the attention factor of `yarn`.", .minimum = 0},
      {LONGHAUL_KEY(model.rope_scaling, mscale_all_dim, meaning),
       .explanation = "With mscale, in the attention factor of `yarn`.", .minimum = 0},
      {LONGHAUL_KEY(model.rope_scaling, truncate, meaning),
       .explanation = "The bounds of `yarn` are whole dims."},
      {LONGHAUL_KEY(model.rope_scaling, attention_factor, meaning),
       .explanation = "Factor of cos and sin; of `yarn` and `longrope`.", .minimum = 0,
       .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, short_factor, meaning),
       .explanation = "By which each pair's wavelength is stretched where training.seq_len is at "
                      "most the original length; required of `longrope`.",
       .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(model.rope_scaling, long_factor, meaning),
       .explanation = "The same where it is longer.", .minimum = 0, .above_minimum = true},

      {LONGHAUL_KEY(model.linear_attn_config, kda_layers, meaning),
       .explanation = "Layers of Kimi Delta Attention, numbered from 1; all of them, since latent "
                      "attention is not built.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model.linear_attn_config, full_attn_layers, meaning),
       .explanation = "Layers of latent attention, numbered from 1; none.", .minimum = 1,
       .maximum = kMaxHeads},
      {LONGHAUL_KEY(model.linear_attn_config, num_heads, meaning), .explanation = "State heads.",
       .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model.linear_attn_config, head_dim, meaning),
       .explanation = "Width of a head's keys and values.", .minimum = 1, .maximum = kMaxHeads},
      {LONGHAUL_KEY(model.linear_attn_config, short_conv_kernel_size, meaning),
       .explanation = "Width of the causal convolutions in tokens.", .minimum = 1, .maximum = 5},
  };
}

/// "linear_attn_config.num_heads"; empty outside of [model].
std::string name_in_model(const runtime::ConfigKey& key) {
  const std::string path = key.path();
  return path.starts_with("model.") ? path.substr(kSection.size() + 1) : "";
}

/// What the absence of a key means, and to whom.
struct Absence {
  std::string means;
  std::vector<std::string> families;
};
std::vector<Absence> absences(const runtime::ConfigKey& key) {
  std::vector<Absence> all;
  const std::string name = name_in_model(key);
  for (const models::Family& family : models::families()) {
    models::ModelConfig none;
    FamilyKeys keys;
    family.keys(none, keys);
    const FamilyKeys::Key* found = keys.find(name);
    if (found == nullptr) continue;
    const auto same = std::ranges::find(all, found->absent, &Absence::means);
    if (same == all.end()) {
      all.push_back({found->absent, {family.name}});
    } else {
      same->families.push_back(family.name);
    }
  }
  return all;
}

std::string code(const std::vector<std::string>& names) {
  return fmt::format("`{}`", fmt::join(names, "`, `"));
}

/// Who uses a key, in as few names as say it.
std::string users_text(const std::vector<std::string>& users) {
  std::vector<std::string> others = models::family_names();
  std::erase_if(others,
                [&](const std::string& name) { return std::ranges::count(users, name) != 0; });
  if (others.empty()) return "";
  return others.size() < users.size() ? " Not of " + code(others) + "."
                                      : " Of " + code(users) + ".";
}

/// The words of layer_types, with the families that have them.
std::string layer_words() {
  std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> all;
  for (const models::Family& family : models::families()) {
    models::ModelConfig none;
    FamilyKeys keys;
    family.keys(none, keys);
    if (keys.find("layer_types") == nullptr) continue;
    const auto same = std::ranges::find_if(
        all, [&](const auto& words) { return words.first == family.layer_words; });
    if (same == all.end()) {
      all.push_back({family.layer_words, {family.name}});
    } else {
      same->second.push_back(family.name);
    }
  }
  std::string text;
  for (const auto& [words, families] : all)
    text +=
        fmt::format("{}{} of {}", text.empty() ? " Words: " : "; ", code(words), code(families));
  return text + ".";
}

}  // namespace

std::vector<std::string> families_of_key(const runtime::ConfigKey& key) {
  std::vector<std::string> families;
  for (Absence& absence : absences(key)) {
    for (std::string& family : absence.families) families.push_back(std::move(family));
  }
  return families;
}

std::vector<runtime::ConfigKey> model_keys() {
  std::vector<runtime::ConfigKey> keys = declare();
  for (runtime::ConfigKey& key : keys) {
    const std::vector<Absence> all = absences(key);
    if (all.empty()) continue;
    for (const Absence& absence : all) {
      if (!key.derived_default.empty()) key.derived_default += "; ";
      key.derived_default += absence.means;
      if (all.size() > 1) key.derived_default += " of " + code(absence.families);
    }
    if (name_in_model(key) == "layer_types") key.explanation += layer_words();
    const std::vector<std::string> users = families_of_key(key);
    key.explanation += users_text(users);
  }
  return keys;
}

}  // namespace longhaul::launch

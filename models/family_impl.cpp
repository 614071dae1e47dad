#include "models/family_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/counted.h"

namespace longhaul::models {

void check_heads(ModelConfig& c, bool turned, Judge& judge) {
  if (!judge.good({"num_attention_heads"}) || !c.num_attention_heads) return;
  const std::int64_t heads = *c.num_attention_heads;
  if (judge.good({"num_key_value_heads"})) {
    if (!c.num_key_value_heads) c.num_key_value_heads = heads;
    if (*c.num_key_value_heads < 1 || heads % *c.num_key_value_heads != 0) {
      judge.wrong("num_key_value_heads",
                  fmt::format("expected a divisor of num_attention_heads = {}", heads));
    }
  }
  if (!judge.good({"hidden_size", "head_dim"})) return;
  if (c.head_dim) {
    if (*c.head_dim < 1 || (turned && *c.head_dim % 2 != 0)) {
      judge.wrong("head_dim", turned ? "expected an even number: rotary embedding turns pairs"
                                     : "expected at least 1");
    }
    return;
  }
  if (c.hidden_size % heads != 0) {
    judge.wrong(
        "hidden_size",
        fmt::format("expected a multiple of num_attention_heads = {}, or head_dim beside it",
                    heads));
    return;
  }
  c.head_dim = c.hidden_size / heads;
  if (turned && *c.head_dim % 2 != 0) {
    judge.wrong("hidden_size",
                fmt::format("hidden_size / num_attention_heads = {}: expected an even head_dim "
                            "(rotary embedding turns pairs)",
                            *c.head_dim));
  }
}

void check_positive(const std::optional<double>& value, const char* key, Judge& judge) {
  if (judge.good({key}) && value && !(*value > 0)) judge.wrong(key, "expected more than 0");
}

void check_multiple(const std::optional<std::int64_t>& value, const char* key,
                    const std::optional<std::int64_t>& of, const char* of_key, Judge& judge) {
  if (!judge.good({key, of_key}) || !value || !of || *of < 1 || *value % *of == 0) return;
  judge.wrong(key, fmt::format("expected a multiple of {} = {}", of_key, *of));
}

void check_time_steps(const ModelConfig& config, Judge& judge) {
  const std::vector<double>& limit = config.time_step_limit;
  if (judge.good({"time_step_limit"}) && (limit.size() != 2 || !(limit[0] < limit[1])))
    judge.wrong("time_step_limit", "expected the lowest and the highest step, [0.0, inf] for none");
}

void check_layer_types(const ModelConfig& config, std::span<const std::string> words,
                       Judge& judge) {
  if (!judge.good({"layer_types"})) return;
  for (std::size_t i = 0; i < config.layer_types.size(); ++i) {
    if (std::ranges::count(words, config.layer_types[i]) == 0)
      judge.unknown_word("layer_types", i, words);
  }
  const std::int64_t entries = std::ssize(config.layer_types);
  if (judge.good({"num_hidden_layers"}) && entries != 0 && entries != config.num_hidden_layers) {
    judge.wrong("layer_types",
                fmt::format("{}; expected one for each of the num_hidden_layers = {}",
                            runtime::counted(entries, "entry"), config.num_hidden_layers));
  }
}

std::vector<MaskKind> one_mask(std::span<const std::string> layers, const char* word) {
  return {{std::nullopt, std::ranges::count(layers, word)}};
}

Assembly::Assembly(const ModelConfig& config, const BranchShape& branch, FamilyNames names)
    : config_(config),
      branch_(branch),
      names_(std::move(names)),
      residual_stddev_(kStddev / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers))) {
  parts.hidden = config.hidden_size;
  parts.dtype = config.dtype;
  parts.embedding = names_.embedding;
  parts.table.add({names_.embedding,
                   {*config.vocab_size, config.hidden_size},
                   parallel::Initialisation::normal,
                   kStddev,
                   false,
                   0,
                   group_,
                   {}});
}

std::string Assembly::layer() { return fmt::format("{}{}.", names_.layers, group_++); }

void Assembly::add_unused(const std::string& name, std::vector<std::int64_t> sizes) {
  parts.table.add(
      {name, std::move(sizes), parallel::Initialisation::normal, kStddev, false, -1, group_, {}});
}

ModelParts Assembly::finish() {
  using enum parallel::Initialisation;
  const std::int64_t hidden = config_.hidden_size, vocabulary = *config_.vocab_size;
  ++group_;
  parts.table.add(
      {names_.norm, {hidden}, branch_.norm_offset == 0 ? ones : zeros, 0, false, -1, group_, {}});
  if (!*config_.tie_word_embeddings)
    parts.table.add({names_.head, {vocabulary, hidden}, normal, kStddev, true, 0, group_, {}});
  parts.head = {.hidden = hidden,
                .vocabulary = vocabulary,
                .norm_eps = branch_.norm_eps,
                .dtype = config_.dtype,
                .norm = names_.norm,
                .weight = *config_.tie_word_embeddings ? names_.embedding : names_.head,
                .norm_offset = branch_.norm_offset,
                .logits_scaling = config_.logits_scaling.value_or(1),
                .softcap = config_.final_logit_softcapping.value_or(0)};
  return std::move(parts);
}

}  // namespace longhaul::models

// Keys of rotary embedding, as the families' files take them.

#include <fmt/format.h>

#include "models/family_impl.h"

namespace longhaul::models {
namespace {

std::string in_table(const std::string& key) { return "rope_scaling." + key; }

/// A length that a family has at the top stands for the table's.
RopeScaling scaling_of(const ModelConfig& c) {
  RopeScaling scaling = c.rope_scaling;
  const std::string type = rope_type_of(scaling);
  if (!scaling.original_max_position_embeddings && takes_original_length(type))
    scaling.original_max_position_embeddings = c.original_max_position_embeddings;
  return scaling;
}

RopeBase base_of(const ModelConfig& c) {
  return {rotary_dims(c), *c.rope_theta, c.max_position_embeddings, c.seq_len};
}

}  // namespace

void rope_keys(ModelConfig& c, FamilyKeys& keys, double theta) {
  RopeScaling& scaling = c.rope_scaling;
  keys.with_default("rope_theta", c.rope_theta, theta);
  keys.optional("max_position_embeddings", c.max_position_embeddings, "none");
  keys.optional("rope_scaling.rope_type", scaling.rope_type, "`\"default\"`");
  keys.optional("rope_scaling.factor", scaling.factor, "none");
  keys.optional("rope_scaling.original_max_position_embeddings",
                scaling.original_max_position_embeddings, "max_position_embeddings");
  keys.optional("rope_scaling.low_freq_factor", scaling.low_freq_factor, "none");
  keys.optional("rope_scaling.high_freq_factor", scaling.high_freq_factor, "none");
  keys.optional("rope_scaling.beta_fast", scaling.beta_fast, "`32`");
  keys.optional("rope_scaling.beta_slow", scaling.beta_slow, "`1`");
  keys.optional("rope_scaling.mscale", scaling.mscale, "none");
  keys.optional("rope_scaling.mscale_all_dim", scaling.mscale_all_dim, "none");
  keys.optional("rope_scaling.truncate", scaling.truncate, "`true`");
  keys.optional("rope_scaling.attention_factor", scaling.attention_factor,
                "from factor and lengths");
  keys.optional("rope_scaling.short_factor", scaling.short_factor, "none");
  keys.optional("rope_scaling.long_factor", scaling.long_factor, "none");
}

std::int64_t rotary_dims(const ModelConfig& c) {
  return static_cast<std::int64_t>(static_cast<double>(*c.head_dim) *
                                   c.partial_rotary_factor.value_or(1));
}

void check_rope(ModelConfig& c, Judge& judge) {
  check_positive(c.rope_theta, "rope_theta", judge);
  if (!judge.good({"head_dim", "partial_rotary_factor", "rope_theta", "max_position_embeddings",
                   "rope_scaling.rope_type"}) ||
      !c.head_dim)
    return;
  RopeScaling& scaling = c.rope_scaling;
  if (scaling.rope_type) scaling.rope_type = rope_type_of(scaling);
  if (rotary_dims(c) % 2 != 0) {
    judge.wrong("partial_rotary_factor",
                fmt::format("it turns {} of head_dim = {} dims; expected an even number: rotary "
                            "embedding turns pairs",
                            rotary_dims(c), *c.head_dim));
    return;
  }
  for (const RopeProblem& problem : problems_of(base_of(c), scaling_of(c))) {
    const std::string key = problem.base.empty() ? in_table(problem.key) : problem.base;
    if (!judge.good({key.c_str()})) continue;
    if (problem.missing) {
      judge.missing(key);
    } else {
      judge.wrong(key.c_str(), problem.expected);
    }
  }
  if (const auto& top = c.original_max_position_embeddings;
      top && scaling.original_max_position_embeddings.value_or(*top) != *top)
    judge.wrong(
        "rope_scaling.original_max_position_embeddings",
        fmt::format("original_max_position_embeddings = {} says it; leave this one out", *top));
}

std::optional<std::int64_t> original_length(const ModelConfig& c) {
  const RopeScaling scaling = scaling_of(c);
  return scaling.original_max_position_embeddings ? scaling.original_max_position_embeddings
                                                  : c.max_position_embeddings;
}

Rope rope_of(const ModelConfig& c) { return make_rope(base_of(c), scaling_of(c)); }

}  // namespace longhaul::models

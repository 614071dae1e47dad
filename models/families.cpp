#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "models/family.h"
#include "models/family_impl.h"
#include "runtime/error.h"

namespace longhaul::models {

using runtime::ExitCode;
using runtime::fail;

namespace {

/// Throws what it hears.
class Thrower final : public Judge {
 public:
  bool good(std::initializer_list<const char*>) const override { return true; }
  void missing(const std::string& key) override {
    fail(ExitCode::config, "[model] ", key, " is missing");
  }
  void wrong(const char* key, const std::string& what) override {
    fail(ExitCode::config, "[model] ", key, ": ", what);
  }
  void unknown_word(const char* key, std::size_t index,
                    std::span<const std::string> words) override {
    fail(ExitCode::config, "[model] ", key, "[", index, "] is unknown; expected ",
         fmt::format("{}", fmt::join(words, " or ")));
  }
};

void require_positive(const char* field, std::int64_t value) {
  if (value < 1) fail(ExitCode::config, "[model] ", field, " is ", value, "; expected at least 1");
}

}  // namespace

void FamilyKeys::with_default(const char* name, std::vector<double>& value,
                              std::vector<double> otherwise) {
  keys_.push_back(
      {name, is_given(value), false, fmt::format("`[{}]`", fmt::join(otherwise, ", "))});
  if (value.empty()) value = std::move(otherwise);
}

const FamilyKeys::Key* FamilyKeys::find(const std::string& name) const {
  const auto found = std::ranges::find(keys_, name, &Key::name);
  return found == keys_.end() ? nullptr : &*found;
}

/// 1e-5, not 1e-05.
std::string FamilyKeys::text(double value) {
  std::string number = fmt::format("`{:g}`", value);
  if (const auto at = number.find("e-0"); at != number.npos) number.erase(at + 2, 1);
  if (const auto at = number.find("e+0"); at != number.npos) number.erase(at + 1, 2);
  return number;
}
std::string FamilyKeys::text(std::int64_t value) { return fmt::format("`{}`", value); }
std::string FamilyKeys::text(bool value) { return value ? "`true`" : "`false`"; }
std::string FamilyKeys::text(const std::string& value) { return fmt::format("`\"{}\"`", value); }

std::span<const Family> families() {
  static const std::array all{llama_family(),
                              mistral_family(),
                              qwen2_family(),
                              qwen3_family(),
                              gemma2_family(),
                              gemma3_text_family(),
                              phi3_family(),
                              olmo2_family(),
                              qwen3_next_family(),
                              qwen3_5_family(),
                              granitemoehybrid_family(),
                              nemotron_h_family(),
                              minimax_family(),
                              kimi_linear_family(),
                              linear_llama3_family()};
  return all;
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.push_back(family.name);
  return names;
}

const Family& family_of(const std::string& architecture) {
  const auto found = std::ranges::find(families(), architecture, &Family::name);
  if (found == families().end())
    fail(ExitCode::config, "[model] architecture is '", architecture, "'; expected one of ",
         fmt::format("{}", fmt::join(family_names(), ", ")));
  return *found;
}

void complete(ModelConfig& config, Judge& judge) {
  const Family& family = family_of(config.architecture);
  FamilyKeys keys;
  family.keys(config, keys);
  for (const FamilyKeys::Key& key : keys.keys()) {
    if (key.required && !key.given) judge.missing(key.name);
  }
  family.check(config, judge);
}

void complete(ModelConfig& config) {
  Thrower judge;
  complete(config, judge);
}

Model model_of(ModelConfig config, const ModelOptions& options) {
  require_positive("hidden_size", config.hidden_size);
  require_positive("num_hidden_layers", config.num_hidden_layers);
  require_positive("vocab_size", config.vocab_size.value_or(0));
  if (config.dtype != runtime::DType::float32 && config.dtype != runtime::DType::bfloat16) {
    fail(ExitCode::config, "[training] dtype is ", name(config.dtype),
         "; expected float32 or bfloat16");
  }
  complete(config);
  return {family_of(config.architecture).parts(config), options};
}

}  // namespace longhaul::models

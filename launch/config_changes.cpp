#include "launch/config_changes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "attention/named_masks.h"
#include "launch/config.h"
#include "launch/hf_config.h"
#include "launch/old_schemes.h"
#include "launch/row_rules.h"
#include "models/family.h"
#include "models/layer_types.h"
#include "models/optimizer.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ConfigKey;
using runtime::ExitCode;
using runtime::fail;
using runtime::OnResume;

/// A checkpoint's configuration as this program reads it. Throws Error(data) unless every key of
/// `needed` can be understood.
TrainDraft read_stored(const std::string& text, const std::string& path,
                       const std::function<bool(const ConfigKey&)>& needed) {
  const std::string today = translate_config(text);
  const auto parsed = runtime::parse_toml(today);
  if (const auto* error = std::get_if<runtime::TomlSyntaxError>(&parsed))
    fail(ExitCode::data, path, ": its configuration is no TOML: ", error->message);
  const runtime::ConfigSchema& schema = config_schema();
  const std::vector<std::string> unknown =
      unknown_keys(schema, std::get<std::vector<runtime::TomlSection>>(parsed));
  if (!unknown.empty())
    fail(ExitCode::data, path, ": its configuration has keys that this program does not know (",
         fmt::format("{}", fmt::join(unknown, ", ")),
         "); go on with the program that made it, or a newer one");
  TrainDraft draft(path);
  runtime::read_stored_config(draft, today);
  check_model(draft);
  for (const ConfigKey& key : schema.keys()) {
    if (needed(key) && !draft.good({key.path().c_str()}))
      fail(ExitCode::data, path, ": its configuration has no ", key.path(),
           " that can be understood");
  }
  return draft;
}

/// Of what the layers are: their words, or a key of a pattern.
bool gives_layers(const ModelConfig& model) {
  return !model.layer_types.empty() || model.full_attention_interval || model.use_sliding_window ||
         model.sliding_window_pattern;
}

/// Spells alike what means the same.
void spell_out(TrainConfig& config, std::int64_t vocab_size, bool layer_types) {
  ModelConfig& model = config.model;
  model.vocab_size = model.vocab_size.value_or(vocab_size);
  if (layer_types) {
    model.layer_types = models::family_of(model.architecture).layers(model);
    model.full_attention_interval.reset();
    model.use_sliding_window.reset();
    model.max_window_layers.reset();
    model.sliding_window_pattern.reset();
    if (std::ranges::none_of(model.layer_types, models::is_sliding)) model.sliding_window.reset();
  }
  config.data.mask = attention::mask_rule(config.data.mask).name;
}

double learning_rate(const TrainConfig& config, std::int64_t step) {
  return models::learning_rate({config.optimizer.lr, config.lr_scheduler.warmup_steps,
                                config.training.steps, config.lr_scheduler.min_lr_factor},
                               step);
}

std::string listed(const std::vector<KeyChange>& changes) {
  std::string text;
  for (const KeyChange& change : changes) {
    text += fmt::format("\n  {} = {}: the checkpoint was made with {}", change.key, change.now,
                        change.before);
  }
  return text;
}

/// Whether it makes other parameters, or other use of them.
bool changes_model(const KeyChange& change) {
  constexpr std::string_view kModel = "model.";
  return change.key.starts_with(kModel) && !is_length_key(change.key.substr(kModel.size()));
}

}  // namespace

ConfigChanges compare_with_checkpoint(const runtime::CheckpointMetadata& checkpoint,
                                      const std::string& path, const ResumingRun& run) {
  const TrainDraft stored = read_stored(checkpoint.config, path, [](const ConfigKey& key) {
    return key.on_resume == OnResume::meaning;
  });
  TrainConfig before = stored.config, now = run.config;
  TrainConfig before_as_given = before, now_as_given = now;
  ConfigChanges changes;
  changes.next_step = checkpoint.step + 1;
  changes.rate_before = learning_rate(before, changes.next_step);
  changes.rate_now = learning_rate(now, changes.next_step);

  const bool layer_types = gives_layers(before.model) || gives_layers(now.model);
  spell_out(before, run.vocab_size, layer_types);
  spell_out(now, run.vocab_size, layer_types);
  for (const ConfigKey& key : config_schema().keys()) {
    const auto old_value = value_text(key, before), new_value = value_text(key, now);
    if (key.on_resume == OnResume::free || old_value == new_value) continue;
    const auto shown = [&](TrainConfig& as_given, const std::optional<std::string>& spelled_out) {
      const auto given = value_text(key, as_given);
      return given ? *given : spelled_out.value_or("not set");
    };
    KeyChange change{key.path(), shown(before_as_given, old_value), shown(now_as_given, new_value)};
    if (key.before_it_existed && stored.given(change.key) == nullptr)
      change.before += ", as all runs did before this key existed";
    auto& list = key.on_resume == OnResume::meaning ? changes.meaning : changes.run;
    list.push_back(std::move(change));
  }
  // Labels are not a key of their own: today's follow from the mask, and they stayed inside
  // documents before there were data.positions.
  if (stored.given("data.positions") == nullptr && now.data.positions == before.data.positions &&
      row_rules(now.data).labels_cross) {
    const auto positions = value_text(*config_schema().find("data", "positions"), now);
    changes.meaning.push_back(
        {"data.positions",
         "\"document\" and labels inside documents, as all runs were before this key existed",
         positions.value_or("") + " with labels that cross documents"});
  }
  if (checkpoint.corpus_digest != run.corpus_digest) {
    const auto named = [](TrainConfig& config, const std::string& digest) {
      const auto value = value_text(*config_schema().find(corpus_key(config.data)), config);
      return fmt::format("{} of digest {}", value.value_or("not set"), digest);
    };
    changes.meaning.push_back({corpus_key(now.data), named(before, checkpoint.corpus_digest),
                               named(now, run.corpus_digest)});
  }
  return changes;
}

ConfigChanges require_same_meaning(const runtime::CheckpointMetadata& checkpoint,
                                   const std::string& path, const ResumingRun& run) {
  ConfigChanges changes = compare_with_checkpoint(checkpoint, path, run);
  if (changes.meaning.empty()) return changes;
  fail(ExitCode::config, path,
       ": this run's configuration gives the checkpoint another meaning:", listed(changes.meaning),
       "\nTo go on from it, set these keys as they were. To start another run, set another "
       "job.output_dir, or checkpoint.resume = \"never\"");
}

ModelConfig checkpoint_model(const runtime::CheckpointMetadata& checkpoint,
                             const std::string& path) {
  TrainDraft stored = read_stored(checkpoint.config, path, [](const ConfigKey& key) {
    return key.path().starts_with("model.");
  });
  if (!stored.config.model.vocab_size)
    fail(ExitCode::data, path, ": its configuration has no model.vocab_size");
  return stored.config.model;
}

DataConfig checkpoint_data(const runtime::CheckpointMetadata& checkpoint, const std::string& path) {
  TrainDraft stored = read_stored(checkpoint.config, path, [](const ConfigKey& key) {
    return key.path() == "data.mask" || key.path() == "data.window";
  });
  stored.config.data.mask = attention::mask_rule(stored.config.data.mask).name;
  return stored.config.data;
}

ConfigChanges require_same_model(const runtime::CheckpointMetadata& checkpoint,
                                 const std::string& path, const ResumingRun& run) {
  ConfigChanges changes = compare_with_checkpoint(checkpoint, path, run);
  std::vector<KeyChange> model;
  changes.run.clear();
  for (KeyChange& change : std::exchange(changes.meaning, {})) {
    if (change.key.starts_with("data.corp")) continue;  // told as what it is evaluated on
    (changes_model(change) ? model : changes.run).push_back(std::move(change));
  }
  changes.rate_before = changes.rate_now;
  if (model.empty()) return changes;
  fail(ExitCode::config, path, ": the configuration describes another model:", listed(model),
       "\nSet these keys as they were, or evaluate with the config.toml of the run's folder");
}

std::vector<std::string> ConfigChanges::lines() const {
  std::vector<std::string> lines;
  for (const KeyChange& change : run)
    lines.push_back(
        fmt::format("changed  {} from {} to {}", change.key, change.before, change.now));
  if (rate_before != rate_now)
    lines.push_back(fmt::format("changed  the learning rate of step {} from {:.4g} to {:.4g}",
                                next_step, rate_before, rate_now));
  return lines;
}

std::string optimizer_text(const TrainConfig& config) {
  const OptimizerConfig& o = config.optimizer;
  const LrSchedulerConfig& s = config.lr_scheduler;
  return fmt::format(
      "{}, lr {:g} after {} warm-up steps, {} to {:g} at step {}, betas {:g} and {:g}, eps {:g}, "
      "weight decay {:g}, {}",
      o.name, o.lr, s.warmup_steps, s.decay_type, o.lr * s.min_lr_factor, config.training.steps,
      o.beta1, o.beta2, o.eps, o.weight_decay,
      config.training.max_norm > 0 ? fmt::format("clipped to norm {:g}", config.training.max_norm)
                                   : "not clipped");
}

}  // namespace longhaul::launch

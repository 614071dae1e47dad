#include "launch/export_readme.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/metrics.h"
#include "runtime/build_info.h"

namespace longhaul::launch {

namespace {

/// What all runs have done together, and where there are several, each.
std::string steps_text(const ExportFacts& facts) {
  std::int64_t steps = 0, tokens = 0;
  for (const TrainedRun& run : facts.runs) steps += run.steps, tokens += run.tokens;
  std::string text = fmt::format("- Steps: {}, {} tokens{}.\n", grouped(steps), grouped(tokens),
                                 facts.origin ? ", after the source" : "");
  const bool several = facts.runs.size() > 1;
  if (several) {
    for (const TrainedRun& run : facts.runs)
      text += fmt::format(
          "  - {}, {} tokens{}: `{}`\n", grouped(run.steps), grouped(run.tokens),
          run.seq_len > 0 ? fmt::format(", in sequences of {}", grouped(run.seq_len)) : "",
          run.checkpoint);
  }
  if (facts.trained_length > 0)
    text += fmt::format("- Length: trained on sequences of {}{} tokens.\n", several ? "up to " : "",
                        grouped(facts.trained_length));
  return text;
}

}  // namespace

ExportFacts export_facts(const CheckpointWeights& source, const std::optional<HfOrigin>& origin) {
  ExportFacts facts;
  facts.checkpoint = source.path().string();
  facts.runs = source.runs();
  for (const TrainedRun& run : facts.runs)
    facts.trained_length = std::max(facts.trained_length, run.seq_len);
  facts.rope_type = source.model().rope_scaling.rope_type.value_or("");
  if (!origin) return facts;
  facts.origin = origin->folder;
  for (ModelDifference& difference :
       compare_models(parse_hf_config(origin->config, kHfConfigName).model, source.model())) {
    if (is_length_key(difference.key)) facts.length_changes.push_back(std::move(difference));
  }
  return facts;
}

std::string readme_text(const std::string& name, const ExportFacts& facts,
                        const std::string& dtype) {
  std::string text = fmt::format("# {}\n\nWritten by {}.\n\n", name, runtime::version_line());
  if (facts.origin) text += fmt::format("- Source: the weights of `{}`.\n", *facts.origin);
  text += fmt::format("- Checkpoint: `{}`.\n", facts.checkpoint);
  text += steps_text(facts);
  text += "- Rotary embedding: ";
  if (facts.length_changes.empty()) {
    text += facts.origin ? "as in the source.\n" : "as config.json says.\n";
  } else {
    text += "changed.\n";
    for (const auto& [key, before, after] : facts.length_changes)
      text += fmt::format("  - `{}`: {}, was {}\n", key, after, before);
  }
  const std::int64_t last_length = facts.runs.empty() ? 0 : facts.runs.back().seq_len;
  if (last_length > 0 && (facts.rope_type == "dynamic" || facts.rope_type == "longrope"))
    text += fmt::format(
        "  Training turned all positions as `{}` has it for {} tokens; transformers goes by the "
        "length of "
        "the text at hand.\n",
        facts.rope_type, grouped(last_length));
  text += fmt::format("- Dtype: {}.\n", dtype);
  if (facts.origin) text += "\nThe source's terms of use hold for these weights as well.\n";
  return text;
}

}  // namespace longhaul::launch

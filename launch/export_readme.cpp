#include "launch/export_readme.h"

#include <fmt/format.h>

#include <charconv>

#include "launch/metrics.h"
#include "runtime/build_info.h"

namespace longhaul::launch {

ExportFacts export_facts(const CheckpointWeights& source, const std::optional<HfOrigin>& origin) {
  const runtime::CheckpointMetadata& metadata = source.checkpoint().metadata();
  ExportFacts facts;
  facts.checkpoint = source.path().string();
  facts.steps = metadata.step;
  facts.tokens = metadata.tokens;
  if (const auto length = metadata.extra.find("seq_len"); length != metadata.extra.end()) {
    const std::string& text = length->second;
    std::from_chars(text.data(), text.data() + text.size(), facts.trained_length);
  }
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
  text += fmt::format("- Steps: {}, {} tokens{}.\n", grouped(facts.steps), grouped(facts.tokens),
                      facts.origin ? ", after the source" : "");
  if (facts.trained_length > 0)
    text += fmt::format("- Length: trained on sequences of {} tokens.\n",
                        grouped(facts.trained_length));
  text += "- Rotary embedding: ";
  if (facts.length_changes.empty()) {
    text += facts.origin ? "as in the source.\n" : "as config.json says.\n";
  } else {
    text += "changed.\n";
    for (const auto& [key, before, after] : facts.length_changes)
      text += fmt::format("  - `{}`: {}, was {}\n", key, after, before);
  }
  if (facts.trained_length > 0 && (facts.rope_type == "dynamic" || facts.rope_type == "longrope"))
    text += fmt::format(
        "  Training turned all positions as `{}` has it for {} tokens; transformers goes by the "
        "length of "
        "the text at hand.\n",
        facts.rope_type, grouped(facts.trained_length));
  text += fmt::format("- Dtype: {}.\n", dtype);
  if (facts.origin) text += "\nThe source's terms of use hold for these weights as well.\n";
  return text;
}

}  // namespace longhaul::launch

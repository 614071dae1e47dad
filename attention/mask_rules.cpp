#include "attention/mask_rules.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {

using runtime::concat;
using runtime::ExitCode;
using runtime::fail;

namespace {

std::vector<MaskRule> declare() {
  using enum MaskInput;
  using Scope = MaskScope;
  return {
      {"full", "", false, Scope::sequence, {}, {}, "always"},
      {"causal", "", true, Scope::sequence, {}, {}, "j <= i"},
      {"full_document",
       "",
       false,
       Scope::document,
       {{documents}},
       {window},
       "both are in one document, and with a window abs(i - j) < window"},
      {"causal_document",
       "documents",
       true,
       Scope::document,
       {{documents}},
       {window},
       "both are in one document, and j <= i, and with a window i - j < window"},
      {"full_window", "", false, Scope::sequence, {{window}}, {}, "abs(i - j) < window"},
      {"causal_window", "", true, Scope::sequence, {{window}}, {}, "0 <= i - j < window"},
      {"shared_question",
       "",
       true,
       Scope::answer,
       {{documents}, {prefix, prefixes}, {block, block_offsets}},
       {window},
       "both are in one document, j <= i, and j is in the document's question or both are in one "
       "of its answers. The question is the document's first `prefix` tokens. Its answers are "
       "what follows, cut every `block` tokens from the question's end, or at `block_offsets`. "
       "With a window, "
       "the last `window` keys of those"},
      {"global_window",
       "",
       false,
       Scope::sequence,
       {{window}, {global}},
       {},
       "abs(i - j) < window, or i < global, or j < global"},
      {"causal_blockwise",
       "",
       true,
       Scope::sequence,
       {{block, documents}},
       {},
       "j <= i, and both are in one block or i is in the last block that has tokens. The blocks "
       "are of `block` tokens, or are the documents"},
      {"prefix_causal", "", false, Scope::sequence, {{prefix}}, {}, "j <= i, or j < prefix"},
      {"prefix_document",
       "",
       false,
       Scope::document,
       {{documents}, {prefix, prefixes}},
       {},
       "both are in one document, and j <= i or j is among the document's first `prefix` tokens"},
      {"block_causal_document",
       "",
       false,
       Scope::document,
       {{documents}, {block}},
       {},
       "both are in one document, and j's block is i's or an earlier one. A document's blocks are "
       "of `block` tokens, from its start"},
      {"block_sparse",
       "",
       false,
       Scope::sequence,
       {{block}, {blocks}},
       {},
       "blocks[i / block, j / block] is 1"},
      {"block_sparse_variable",
       "",
       false,
       Scope::sequence,
       {{block_offsets}, {blocks}},
       {},
       "blocks[m, n] is 1, where i is in block m and j in block n of `block_offsets`"},
      {"slices", "", false, Scope::sequence, {{slices}}, {}, "a slice holds the pair (i, j)"},
  };
}

}  // namespace

const char* name(MaskInput input) {
  switch (input) {
    case MaskInput::window:
      return "window";
    case MaskInput::prefix:
      return "prefix";
    case MaskInput::global:
      return "global";
    case MaskInput::block:
      return "block";
    case MaskInput::documents:
      return "documents";
    case MaskInput::prefixes:
      return "prefixes";
    case MaskInput::blocks:
      return "blocks";
    case MaskInput::block_offsets:
      return "block_offsets";
    case MaskInput::slices:
      return "slices";
  }
  return "?";
}

const char* name(MaskScope scope) {
  return scope == MaskScope::sequence   ? "sequence"
         : scope == MaskScope::document ? "document"
                                        : "answer";
}

bool MaskRule::sees_whole_past() const {
  return name == std::string_view("causal") || name == std::string_view("causal_document");
}

bool MaskRule::takes(MaskInput input) const {
  const auto among = [&](const std::vector<MaskInput>& inputs) {
    return std::ranges::find(inputs, input) != inputs.end();
  };
  return among(may_have) || std::ranges::any_of(needs, among);
}

bool MaskRule::trainable() const {
  return std::ranges::all_of(needs, [](const std::vector<MaskInput>& choice) {
    return std::ranges::any_of(
        choice, [](MaskInput i) { return is_number(i) || i == MaskInput::documents; });
  });
}

std::span<const MaskRule> mask_rules() {
  static const std::vector<MaskRule> rules = declare();
  return rules;
}

const MaskRule& mask_rule(std::string_view name) {
  for (const MaskRule& rule : mask_rules()) {
    if (name == rule.name || (*rule.alias != '\0' && name == rule.alias)) return rule;
  }
  std::string all;
  for (const std::string& known : mask_names()) all += (all.empty() ? "" : ", ") + known;
  fail(ExitCode::config, "unknown mask '", name, "'; expected one of ", all);
}

std::vector<std::string> mask_names() {
  std::vector<std::string> names;
  for (const MaskRule& rule : mask_rules()) {
    names.emplace_back(rule.name);
    if (*rule.alias != '\0') names.emplace_back(rule.alias);
  }
  return names;
}

std::string mask_reference() {
  const auto code = [](MaskInput input) {
    return concat("`", is_number(input) ? "--" : "", name(input), "`");
  };
  std::string text =
      "| mask | query i sees key j when | needs | causal | attends within "
      "|\n|---|---|---|---|---|\n";
  for (const MaskRule& rule : mask_rules()) {
    std::string needs;
    for (const std::vector<MaskInput>& choice : rule.needs) {
      needs += needs.empty() ? "" : "; ";
      for (const MaskInput input : choice)
        needs += (input == choice.front() ? "" : " or ") + code(input);
    }
    for (const MaskInput input : rule.may_have)
      needs += (needs.empty() ? "may have " : "; may have ") + code(input);
    const std::string alias = *rule.alias == '\0' ? "" : concat(", `", rule.alias, "`");
    text += concat("| `", rule.name, "`", alias, " | ", rule.sees, " | ", needs, " | ",
                   rule.causal ? "yes" : "no", " | ", name(rule.scope), " |\n");
  }
  return text;
}

}  // namespace longhaul::attention

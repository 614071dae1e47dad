#include "runtime/text/pre_tokenizer_impl.h"

#include <algorithm>

#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr int kMaxDepth = 8;
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::size_t digits_end(std::string_view text, std::size_t at, bool individual) {
  const auto number = [&](std::size_t i) { return is_number(character(text.substr(i))); };
  const bool first = number(at);
  at += character_bytes(text.substr(at));
  if (first && individual) return at;
  while (at < text.size() && number(at) == first) at += character_bytes(text.substr(at));
  return at;
}

}  // namespace

PreTokenizer::PreTokenizer(const JsonValue& json) { add(json, 0); }

void PreTokenizer::add(const JsonValue& json, int depth) {
  const std::string& type = json.text("type");
  if (byte_level_)
    json.bad("pre-tokenizer '", type, "' follows ByteLevel, which has to be the last");
  if (type == "Sequence" && depth < kMaxDepth) {
    json.only({"type", "pretokenizers"});
    for (const JsonValue& stage : json.at("pretokenizers").elements()) add(stage, depth + 1);
  } else if (type == "Split") {
    add_split(json);
  } else if (type == "Digits") {
    json.only({"type", "individual_digits"});
    stages_.emplace_back(Digits{json.boolean("individual_digits", false)});
  } else if (type == "Metaspace") {
    add_metaspace(json);
  } else if (type == "ByteLevel") {
    add_byte_level(json);
  } else {
    json.bad("pre-tokenizer '", type,
             "' is not supported; Split, Digits, Metaspace, ByteLevel and Sequence are");
  }
}

void PreTokenizer::add_split(const JsonValue& json) {
  json.only({"type", "pattern", "behavior", "invert"});
  Split split;
  const std::string& behavior = json.text("behavior");
  split.joins_gap = behavior == "MergedWithPrevious";
  if (!split.joins_gap && behavior != "Isolated")
    json.bad("behavior '", behavior, "' is not supported; Isolated and MergedWithPrevious are");
  if (json.boolean("invert", false)) json.bad("'invert' is not supported");
  const JsonValue pattern = json.at("pattern");
  pattern.only({"String", "Regex"});
  if (pattern.has("Regex")) {
    const JsonValue regex = pattern.at("Regex");
    split.pattern = std::make_unique<Pattern>(regex.text(), regex.place());
  } else {
    split.text = pattern.text("String");
    if (split.text.empty()) pattern.bad("is the empty text");
  }
  stages_.emplace_back(std::move(split));
}

void PreTokenizer::add_metaspace(const JsonValue& json) {
  json.only({"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  Metaspace stage;
  stage.replacement = json.text("replacement");
  if (character_bytes(stage.replacement) != stage.replacement.size() || stage.replacement.empty())
    json.bad("replacement '", stage.replacement, "' is not one character");
  stage.split = json.boolean("split", true);
  using Prepend = Metaspace::Prepend;
  const bool never = !json.boolean("add_prefix_space", true);  // how older files say "never"
  const std::string scheme = json.has("prepend_scheme") ? json.text("prepend_scheme")
                             : never                    ? "never"
                                                        : "always";
  stage.prepend = scheme == "always"  ? Prepend::always
                  : scheme == "first" ? Prepend::first
                                      : Prepend::never;
  if (scheme != "always" && scheme != "first" && scheme != "never")
    json.bad("prepend_scheme '", scheme, "' is not supported; always, first and never are");
  if (never && scheme != "never")
    json.bad("has add_prefix_space false and prepend_scheme '", scheme, "', which clash");
  if (stage.prepend == Prepend::first) {
    if (!stages_.empty()) json.bad("prepend_scheme 'first' is supported for the first stage only");
    asks_for_origins_ = true;
  }
  stages_.emplace_back(std::move(stage));
}

void PreTokenizer::add_byte_level(const JsonValue& json) {
  json.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (json.at("add_prefix_space").boolean()) stages_.emplace_back(PrefixSpace{});
  if (json.boolean("use_regex", true)) {
    stages_.emplace_back(Split{std::make_unique<Pattern>(kGpt2Pattern, json.place()), {}, false});
  }
  byte_level_ = true;
}

void PreTokenizer::prepare(Room& room, bool keeps_origins) const {
  room.buffers.resize(stages_.size());
  for (TextBuffer& buffer : room.buffers) buffer.keeps_origins = keeps_origins;
}

TextPart PreTokenizer::change(const Stage& stage, const TextPart& text, TextBuffer& buffer) const {
  const auto* metaspace = std::get_if<Metaspace>(&stage);
  if (metaspace == nullptr && !std::holds_alternative<PrefixSpace>(stage)) return text;
  buffer.clear();
  if (metaspace == nullptr) {
    if (text.text.starts_with(' ')) return text;
    buffer.put(" ", text.origin(0));
    buffer.copy(text);
    return buffer.whole();
  }
  using Prepend = Metaspace::Prepend;
  const std::string& replacement = metaspace->replacement;
  const bool begins = text.text.starts_with(' ') || text.text.starts_with(replacement);
  const bool asked = metaspace->prepend == Prepend::always ||
                     (metaspace->prepend == Prepend::first && text.origin(0) == 0);
  if (asked && !begins) buffer.put(replacement, text.origin(0));
  for (std::size_t at = 0; at < text.text.size();) {
    const std::size_t space = std::min(text.text.find(' ', at), text.text.size());
    buffer.copy(text.part(at, space - at));
    at = space;
    if (at < text.text.size()) buffer.put(replacement, text.origin(at++));
  }
  return buffer.whole();
}

std::optional<Pattern::Match> PreTokenizer::Split::find(std::string_view in, std::size_t from,
                                                        Room& room) const {
  if (pattern) return pattern->find(in, from, room.matching);
  const std::size_t found = in.find(text, from);
  if (found == std::string_view::npos) return std::nullopt;
  return Pattern::Match{found, found + text.size()};
}

std::size_t PreTokenizer::piece_end(const Stage& stage, std::string_view text, std::size_t at,
                                    Room& room, std::optional<Pattern::Match>& match) const {
  if (const auto* split = std::get_if<Split>(&stage)) {
    if (!match) match = split->find(text, at, room);
    if (!match) return text.size();
    if (match->begin > at && !split->joins_gap) return match->begin;
    const std::size_t end = match->end;
    match.reset();
    return end;
  }
  if (const auto* digits = std::get_if<Digits>(&stage))
    return digits_end(text, at, digits->individual);
  const auto* metaspace = std::get_if<Metaspace>(&stage);
  if (metaspace == nullptr || !metaspace->split) return text.size();
  return std::min(text.find(metaspace->replacement, at + 1), text.size());
}

}  // namespace longhaul::runtime

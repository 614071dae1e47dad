#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/text/json_model_impl.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max() - 1;
constexpr std::size_t kSpareIds = std::size_t{1} << 16;  // holes that any vocabulary may have

Vocabulary read_vocabulary(const JsonValue& json) {
  if (!json.raw().is_object()) json.bad("is ", json.raw().type_name(), ", not an object");
  Vocabulary vocabulary;
  vocabulary.reserve(json.raw().size());
  for (const auto& [token, id] : json.raw().items()) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMaxId)
      json.at(token).integer(kMaxId);  // says what is wrong
    vocabulary.emplace(token, id.get<std::int32_t>());
  }
  return vocabulary;
}

std::pair<std::string_view, std::string_view> read_pair(const JsonValue& json) {
  if (json.raw().is_array()) {
    const auto parts = json.elements();
    if (parts.size() != 2) json.bad("has ", parts.size(), " tokens, not 2");
    return {parts[0].text(), parts[1].text()};
  }
  const std::string_view text = json.text();
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
    json.bad("'", text, "' is not two tokens with a space between them");
  return {text.substr(0, space), text.substr(space + 1)};
}

std::vector<BpeMerge> read_merges(const JsonValue& json, const Vocabulary& vocabulary) {
  std::vector<BpeMerge> merges;
  const auto& raw = json.raw();
  if (!raw.is_array()) json.bad("is ", raw.type_name(), ", not an array");
  merges.reserve(raw.size());
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (raw[i].is_string() && raw[i].get_ref<const std::string&>().starts_with("#version"))
      continue;
    const JsonValue merge(raw[i], concat(json.place(), "[", i, "]"));
    const auto [left, right] = read_pair(merge);
    const auto id = [&, &left = left, &right = right](std::string_view token) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end())
        merge.bad("'", left, "' and '", right, "': '", token, "' is not in the vocabulary");
      return found->second;
    };
    merges.push_back({id(left), id(right), id(concat(left, right))});
  }
  return merges;
}

void require_empty(const JsonValue& json, std::string_view name) {
  if (json.has(name) && !json.text(name).empty())
    json.bad(name, " '", json.text(name), "' is not supported");
}

}  // namespace

Bpe read_bpe(const JsonValue& json, bool byte_level) {
  if (const std::string type = json.has("type") ? json.text("type") : "BPE"; type != "BPE")
    json.bad("a model of type '", type, "' is not supported; BPE is");
  json.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
             "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (json.has("dropout") && json.at("dropout").raw() != 0.0)
    json.bad("dropout is not supported: a text has one tokenization");
  require_empty(json, "continuing_subword_prefix");
  require_empty(json, "end_of_word_suffix");
  Vocabulary vocabulary = read_vocabulary(json.at("vocab"));
  const auto merges = read_merges(json.at("merges"), vocabulary);
  BpeOptions options;
  options.fuse_unknown = json.boolean("fuse_unk", false);
  options.byte_fallback = json.boolean("byte_fallback", false);
  options.ignore_merges = json.boolean("ignore_merges", false);
  options.byte_level = byte_level;
  if (json.has("unk_token")) {
    const auto found = vocabulary.find(json.text("unk_token"));
    if (found == vocabulary.end())
      json.bad("unk_token '", json.text("unk_token"), "' is not in the vocabulary");
    options.unknown = found->second;
  }
  return Bpe(std::move(vocabulary), merges, options);
}

AddedVocabulary read_added_tokens(const JsonValue& json, const Vocabulary& vocabulary,
                                  const Normalizer& normalizer) {
  AddedVocabulary all{AddedTokens({}), AddedTokens({}), {}};
  if (!json.has("added_tokens")) return all;
  // Special tokens come first where two of them normalize to the same text.
  std::vector<AddedToken> raw[2], normalized[2];
  std::int64_t last = static_cast<std::int64_t>(vocabulary.size()) - 1;
  Vocabulary seen;
  for (const JsonValue& entry : json.at("added_tokens").elements()) {
    entry.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token{.content = entry.text("content"),
                     .id = static_cast<std::int32_t>(entry.at("id").integer(kMaxId)),
                     .single_word = entry.boolean("single_word", false),
                     .lstrip = entry.boolean("lstrip", false),
                     .rstrip = entry.boolean("rstrip", false),
                     .special = entry.boolean("special", false)};
    if (token.content.empty()) entry.bad("has no content");
    if (!seen.emplace(token.content, token.id).second)
      entry.bad("'", token.content, "' is there twice");
    const auto found = vocabulary.find(token.content);
    const std::int64_t id = found != vocabulary.end() ? found->second : last + 1;
    last = std::max(last, id);
    if (token.id != id)
      entry.bad("'", token.content, "' has id ", token.id,
                "; the Hugging Face library would give it ", id);
    all.tokens.push_back(token);
    const int order = token.special ? 0 : 1;
    if (entry.boolean("normalized", !token.special)) {
      token.content = normalizer.apply(token.content);
      if (token.content.empty()) entry.bad("has no content once it is normalized");
      normalized[order].push_back(std::move(token));
    } else {
      raw[order].push_back(std::move(token));
    }
  }
  std::ranges::move(raw[1], std::back_inserter(raw[0]));
  std::ranges::move(normalized[1], std::back_inserter(normalized[0]));
  all.before = AddedTokens(std::move(raw[0]));
  all.after = AddedTokens(std::move(normalized[0]));
  return all;
}

std::vector<std::optional<std::string>> tokens_by_id(const JsonValue& json,
                                                     const Vocabulary& vocabulary,
                                                     const std::vector<AddedToken>& added) {
  std::int32_t last = -1;
  for (const auto& [token, id] : vocabulary) last = std::max(last, id);
  for (const AddedToken& token : added) last = std::max(last, token.id);
  const std::size_t count = vocabulary.size() + added.size();
  if (static_cast<std::size_t>(last) + 1 > 2 * count + kSpareIds)
    json.bad("ids go up to ", last, " for ", count, " tokens; expected few holes");
  std::vector<std::optional<std::string>> tokens(static_cast<std::size_t>(last) + 1);
  const auto put = [&](const std::string& token, std::int32_t id) {
    auto& place = tokens[static_cast<std::size_t>(id)];
    if (place && *place != token)
      json.bad("id ", id, " belongs to both '", *place, "' and '", token, "'");
    place = token;
  };
  for (const auto& [token, id] : vocabulary) put(token, id);
  for (const AddedToken& token : added) put(token.content, token.id);
  return tokens;
}

}  // namespace longhaul::runtime

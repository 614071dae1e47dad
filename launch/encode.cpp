#include "launch/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "runtime/error.h"
#include "runtime/text/utf8.h"

namespace longhaul::launch {

using runtime::ExitCode;
using runtime::fail;

namespace {

std::string place_of(const RawDocuments& raw, const RawDocuments::Document& document) {
  if (!raw.records) return raw.file.string();
  return runtime::concat(raw.file.string(), ":", document.line);
}

void require_utf8(const EncodeRules& rules, const std::string& text,
                  const runtime::EncodedText& encoded) {
  if (encoded.invalid_bytes == 0 || rules.invalid_utf8 == InvalidUtf8::replace) return;
  fail(ExitCode::data, "byte ", runtime::valid_utf8_bytes(text), " is no UTF-8 (",
       encoded.invalid_bytes,
       " such bytes in all): leave the file out if it is no text, or replace them with "
       "--invalid-utf8 replace");
}

/// "U+00E9" of one character, "byte 0xC3" of what is none.
std::string spelled(const std::string& text) {
  if (runtime::character_bytes(text) == 0)
    return fmt::format("byte 0x{:02X}", static_cast<unsigned char>(text.at(0)));
  return fmt::format("U+{:04X}", static_cast<std::uint32_t>(runtime::character(text)));
}

/// A corpus loses no text silently.
void require_kept(const EncodeRules& rules, const std::string& text,
                  const runtime::EncodedText& encoded) {
  if (encoded.dropped_characters == 0) return;
  const std::int64_t at = rules.tokenizer->encode(text, true).first_dropped_at;
  fail(ExitCode::data, "tokenizer ", rules.tokenizer->name(), " has no token for ",
       spelled(encoded.first_dropped), " at byte ", at,
       " of the text, and no unk_token to stand for it (", encoded.dropped_characters,
       " such characters in all): leave the text out, or take a tokenizer that has them");
}

/// Appends a document. Weights are kept for all tokens or for none.
void append(const EncodeRules& rules, const WeightedText& text, EncodedDocuments& all) {
  const bool weighs =
      std::ranges::any_of(text.parts, [](const auto& part) { return part.weight != 1; });
  const runtime::EncodedText encoded = rules.tokenizer->encode(text.text, weighs);
  require_utf8(rules, text.text, encoded);
  require_kept(rules, text.text, encoded);
  std::vector<float> weights;
  if (weighs) weights = text.weights(encoded.begins);
  if (weighs && all.weights.empty()) all.weights.assign(all.tokens.size(), 1.0f);
  const bool keeps = weighs || !all.weights.empty();

  if (rules.bos) all.tokens.push_back(*rules.bos);
  if (rules.bos && keeps) all.weights.push_back(weights.empty() ? 1.0f : weights.front());
  all.tokens.insert(all.tokens.end(), encoded.tokens.begin(), encoded.tokens.end());
  all.weights.insert(all.weights.end(), weights.begin(), weights.end());
  if (keeps && !weighs) all.weights.resize(all.weights.size() + encoded.tokens.size(), 1.0f);
  if (rules.eos) all.tokens.push_back(*rules.eos);
  if (rules.eos && keeps) all.weights.push_back(weights.empty() ? 1.0f : weights.back());

  all.unknown_characters += encoded.unknown_characters;
  all.invalid_bytes += encoded.invalid_bytes;
}

}  // namespace

std::int32_t token_id(const runtime::Tokenizer& tokenizer, const std::string& token,
                      const char* option) {
  std::int32_t id = -1;
  const char* const end = token.data() + token.size();
  if (const auto parsed = std::from_chars(token.data(), end, id); parsed.ptr == end) {
    if (parsed.ec == std::errc() && id >= 0 && id < tokenizer.vocabulary_size()) return id;
    fail(ExitCode::usage, option, " ", token, ": the ids of tokenizer ", tokenizer.name(),
         " are 0 to ", tokenizer.vocabulary_size() - 1);
  }
  if (const auto found = tokenizer.token_id(token)) return *found;
  fail(ExitCode::usage, option, " ", token, ": tokenizer ", tokenizer.name(),
       " has no such token; give one of its tokens, or an id from 0 to ",
       tokenizer.vocabulary_size() - 1);
}

EncodedDocuments encode(const EncodeRules& rules, const RawDocuments& raw) {
  EncodedDocuments all;
  for (const RawDocuments::Document& document : raw.documents) {
    const std::string place = place_of(raw, document);
    const WeightedText text = raw.records ? parse_record(document.text, place, all.unused_fields)
                                          : WeightedText{document.text, {}};
    try {
      append(rules, text, all);
    } catch (const runtime::Error& error) {
      fail(error.code(), place, ": ", error.what());
    }
    all.documents.push_back({std::ssize(all.tokens), document.bytes});
  }
  all.tokens_without_weight = std::ranges::count(all.weights, 0.0f);
  return all;
}

}  // namespace longhaul::launch

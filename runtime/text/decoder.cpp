#include "runtime/text/decoder_impl.h"

#include <charconv>
#include <optional>

#include "runtime/text/bpe_impl.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr int kMaxDepth = 8;
constexpr std::int64_t kMaxStrip = 1 << 20;

/// The byte of a token "<0x0A>".
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  unsigned byte = 0;
  const char* end = token.data() + 5;
  const auto read = std::from_chars(token.data() + 3, end, byte, 16);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return static_cast<char>(byte);
}

}  // namespace

Decoder::Decoder(const JsonValue& json) : missing_(false) { add(json, 0); }

void Decoder::add(const JsonValue& json, int depth) {
  const std::string& type = json.text("type");
  if (type == "Sequence" && depth < kMaxDepth) {
    json.only({"type", "decoders"});
    for (const JsonValue& step : json.at("decoders").elements()) add(step, depth + 1);
  } else if (type == "ByteLevel") {
    json.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    steps_.emplace_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    json.only({"type"});
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    json.only({"type"});
    steps_.emplace_back(Fuse{});
  } else if (type == "Replace") {
    json.only({"type", "pattern", "content"});
    const std::string& from = json.at("pattern").only({"String"}).text("String");
    if (from.empty()) json.bad("replaces the empty text");
    steps_.emplace_back(Replace{from, json.text("content")});
  } else if (type == "Strip") {
    json.only({"type", "content", "start", "stop"});
    const std::string& content = json.text("content");
    if (content.empty() || character_bytes(content) != content.size())
      json.bad("content '", content, "' is not one character");
    steps_.emplace_back(
        Strip{content, json.at("start").integer(kMaxStrip), json.at("stop").integer(kMaxStrip)});
  } else {
    json.bad("decoder '", type,
             "' is not supported; ByteLevel, ByteFallback, Fuse, Replace, Strip and Sequence are");
  }
}

Decoder::Texts Decoder::run(const ByteLevel&, Texts texts, Parts parts) {
  std::string bytes;
  for (const std::string& text : texts) bytes += bytes_of(text).value_or(text);
  return {parts == Parts::keep ? std::move(bytes) : repair_utf8(bytes).text};
}

Decoder::Texts Decoder::run(const ByteFallback&, Texts texts, Parts parts) {
  Texts result;
  std::string bytes;  // of the run of byte tokens at hand
  const auto end_run = [&] {
    if (bytes.empty()) return;
    if (parts == Parts::keep || valid_utf8_bytes(bytes) == bytes.size()) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), "\xef\xbf\xbd");  // U+FFFD a byte
    }
    bytes.clear();
  };
  for (std::string& text : texts) {
    if (const auto byte = fallback_byte(text)) {
      bytes.push_back(*byte);
    } else {
      end_run();
      result.push_back(std::move(text));
    }
  }
  end_run();
  return result;
}

Decoder::Texts Decoder::run(const Fuse&, Texts texts, Parts) {
  std::string all;
  for (const std::string& text : texts) all += text;
  return {all};
}

Decoder::Texts Decoder::run(const Replace& step, Texts texts, Parts) {
  for (std::string& text : texts) {
    std::string result;
    std::size_t at = 0;
    for (std::size_t found; (found = text.find(step.from, at)) != std::string::npos;) {
      result.append(text, at, found - at).append(step.to);
      at = found + step.from.size();
    }
    text = result.append(text, at);
  }
  return texts;
}

Decoder::Texts Decoder::run(const Strip& step, Texts texts, Parts) {
  for (std::string& text : texts) {
    std::string_view kept = text;
    for (std::int64_t i = 0; i < step.start && kept.starts_with(step.content); ++i)
      kept.remove_prefix(step.content.size());
    for (std::int64_t i = 0; i < step.stop && kept.ends_with(step.content); ++i)
      kept.remove_suffix(step.content.size());
    text = std::string(kept);
  }
  return texts;
}

std::string Decoder::decode(std::vector<std::string> tokens, Parts parts) const {
  for (const Step& step : steps_)
    tokens = std::visit([&](const auto& one) { return run(one, std::move(tokens), parts); }, step);
  std::string text;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (missing_ && i > 0) text += ' ';
    text += tokens[i];
  }
  return text;
}

}  // namespace longhaul::runtime

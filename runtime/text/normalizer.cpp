#include "runtime/text/normalizer_impl.h"

#include "runtime/text/nfc_impl.h"

namespace longhaul::runtime {
namespace {

constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxAddedBytes = 1024;  // what a step puts in place of one character, or less

/// Text that a step adds, as often as it likes.
const std::string& added_text(const JsonValue& json, std::string_view name) {
  const std::string& text = json.text(name);
  if (text.size() > kMaxAddedBytes)
    json.bad(name, " has ", text.size(), " bytes; expected at most ", kMaxAddedBytes);
  return text;
}

TextPart prepend(const TextPart& part, const std::string& text, TextBuffer& buffer) {
  if (part.text.empty()) return part;
  buffer.clear();
  buffer.put(text, part.origin(0));
  buffer.copy(part);
  return buffer.whole();
}

TextPart replace(const TextPart& part, const std::string& from, const std::string& to,
                 TextBuffer& buffer) {
  std::size_t found = part.text.find(from);
  if (found == std::string_view::npos) return part;
  buffer.clear();
  std::size_t at = 0;
  for (; found != std::string_view::npos; found = part.text.find(from, at)) {
    buffer.copy(part.part(at, found - at));
    buffer.put(to, part.origin(found));
    at = found + from.size();
  }
  buffer.copy(part.part(at, part.text.size() - at));
  return buffer.whole();
}

}  // namespace

Normalizer::Normalizer(const JsonValue& json) { add(json, 0); }

void Normalizer::add(const JsonValue& json, int depth) {
  const std::string& type = json.text("type");
  if (type == "Sequence" && depth < kMaxDepth) {
    json.only({"type", "normalizers"});
    for (const JsonValue& step : json.at("normalizers").elements()) add(step, depth + 1);
  } else if (type == "NFC") {
    json.only({"type"});
    steps_.emplace_back(Compose{});
  } else if (type == "Prepend") {
    json.only({"type", "prepend"});
    steps_.emplace_back(Prepend{added_text(json, "prepend")});
  } else if (type == "Replace") {
    json.only({"type", "pattern", "content"});
    const std::string& from = json.at("pattern").only({"String"}).text("String");
    if (from.empty()) json.bad("replaces the empty text");
    steps_.emplace_back(Replace{from, added_text(json, "content")});
  } else {
    json.bad("normalizer '", type, "' is not supported; NFC, Prepend, Replace and Sequence are");
  }
}

TextPart Normalizer::apply(TextPart part, TextBuffer (&buffers)[2]) const {
  std::size_t free = 0;
  for (const auto& step : steps_) {
    TextBuffer& buffer = buffers[free];
    if (std::holds_alternative<Compose>(step)) {
      part = compose(part, buffer);
    } else if (const auto* added = std::get_if<Prepend>(&step)) {
      part = prepend(part, added->text, buffer);
    } else {
      const auto& change = std::get<Replace>(step);
      part = replace(part, change.from, change.to, buffer);
    }
    if (part.text.data() == buffer.text.data()) free = 1 - free;
  }
  return part;
}

std::string Normalizer::apply(std::string_view text) const {
  TextBuffer buffers[2];
  return std::string(apply(TextPart{text}, buffers).text);
}

}  // namespace longhaul::runtime

#pragma once
// Private to runtime/text: a part of a text on its way to tokens, and where it comes from.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

/// A part of a text as it is now, UTF-8, and the byte of the document that each byte stands for:
/// `origins[i]`, or without origins `begin + i`.
struct TextPart {
  std::string_view text;
  std::int64_t begin = 0;
  const std::int64_t* origins = nullptr;

  std::int64_t origin(std::size_t i) const {
    return origins != nullptr ? origins[i] : begin + static_cast<std::int64_t>(i);
  }
  TextPart part(std::size_t at, std::size_t size) const {
    return {text.substr(at, size), begin + static_cast<std::int64_t>(at),
            origins != nullptr ? origins + at : nullptr};
  }
};

/// A text that a step rewrites. Origins are kept only when somebody asks: they cost eight bytes a
/// byte.
struct TextBuffer {
  std::string text;
  std::vector<std::int64_t> origins;
  bool keeps_origins = false;

  void clear() { text.clear(), origins.clear(); }
  /// As it stands.
  void copy(const TextPart& part) {
    text.append(part.text);
    for (std::size_t i = 0; keeps_origins && i < part.text.size(); ++i)
      origins.push_back(part.origin(i));
  }
  /// Text that all stands for one byte of the document.
  void put(std::string_view added, std::int64_t origin) {
    text.append(added);
    if (keeps_origins) origins.insert(origins.end(), added.size(), origin);
  }
  /// Without origins, positions are the document's no longer.
  TextPart whole() const { return {text, 0, keeps_origins ? origins.data() : nullptr}; }
};

}  // namespace longhaul::runtime

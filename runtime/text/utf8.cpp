#include "runtime/text/utf8.h"

#include <cstring>

namespace longhaul::runtime {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

struct Prefix {
  std::size_t bytes = 0;  ///< of a character's beginning, at least 1
  bool whole = false;
};

/// The longest prefix of a text, not empty, that begins a character.
Prefix longest_prefix(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const std::size_t size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // What would be longer than needed, a surrogate, or beyond U+10FFFF shows in the second byte.
  const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {i, false};
    const bool goes_on = i == 1 ? byte(i) >= low && byte(i) <= high : (byte(i) & 0xc0) == 0x80;
    if (!goes_on) return {i, false};
  }
  return {size, true};
}

}  // namespace

std::size_t character_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const Prefix prefix = longest_prefix(text);
  return prefix.whole ? prefix.bytes : 0;
}

char32_t character(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xe0) return (lead & 0x1f) << 6 | (byte(1) & 0x3f);
  if (lead < 0xf0) return (lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

void append_utf8(std::string& text, char32_t character) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  const auto tail = [&](unsigned shift) { put(0x80 | (character >> shift & 0x3f)); };
  if (character < 0x80) {
    put(character);
  } else if (character < 0x800) {
    put(0xc0 | character >> 6);
    tail(0);
  } else if (character < 0x10000) {
    put(0xe0 | character >> 12);
    tail(6), tail(0);
  } else {
    put(0xf0 | character >> 18);
    tail(12), tail(6), tail(0);
  }
}

std::size_t valid_utf8_bytes(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t eight = 0;
    if (at + sizeof eight <= text.size()) {
      std::memcpy(&eight, text.data() + at, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof eight;
        continue;
      }
    }
    const Prefix prefix = longest_prefix(text.substr(at));
    if (!prefix.whole) break;
    at += prefix.bytes;
  }
  return at;
}

Utf8Repair repair_utf8(std::string_view text, bool origins) {
  Utf8Repair repair;
  repair.text.reserve(text.size());
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t valid = valid_utf8_bytes(text.substr(at));
    repair.text.append(text, at, valid);
    for (std::size_t i = 0; origins && i < valid; ++i)
      repair.origins.push_back(static_cast<std::int64_t>(at + i));
    at += valid;
    if (at == text.size()) break;
    const std::size_t bytes = longest_prefix(text.substr(at)).bytes;
    repair.text.append(kReplacement);
    if (origins)
      repair.origins.insert(repair.origins.end(), kReplacement.size(),
                            static_cast<std::int64_t>(at));
    repair.invalid_bytes += static_cast<std::int64_t>(bytes);
    at += bytes;
  }
  if (origins) repair.origins.push_back(static_cast<std::int64_t>(text.size()));
  return repair;
}

}  // namespace longhaul::runtime

#pragma once
// UTF-8 as RFC 3629 and chapter 3.9 of the Unicode standard define it: what is no character, and
// what stands for it.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

/// Bytes of the character with which a text begins, 1 to 4; 0 for an empty text and where no
/// character is.
std::size_t character_bytes(std::string_view text);
/// The character with which a text begins, which must be one.
char32_t character(std::string_view text);
void append_utf8(std::string& text, char32_t character);

/// Bytes of the well-formed beginning of a text: all of it, or up to what is no character.
std::size_t valid_utf8_bytes(std::string_view text);

struct Utf8Repair {
  std::string text;                ///< every maximal ill-formed part has become one U+FFFD
  std::int64_t invalid_bytes = 0;  ///< how many bytes those parts had
  /// The byte of the given text that each byte of `text`, and its end, stands for; empty unless
  /// asked for.
  std::vector<std::int64_t> origins;
};
/// Replaces what is no UTF-8 as Python's errors="replace" and the Unicode standard's "substitution
/// of maximal subparts" do: one U+FFFD for the longest beginning of a character that goes no
/// further, and for any other byte that begins none.
Utf8Repair repair_utf8(std::string_view text, bool origins = false);

}  // namespace longhaul::runtime

#pragma once
// Classes of characters by version 16 of the Unicode standard.

#include <optional>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

constexpr char32_t kCharacters = 0x110000;  ///< every character is below it

/// From `first` to `last`, both included.
struct CharacterRange {
  char32_t first = 0, last = 0;
  bool operator==(const CharacterRange&) const = default;
};
/// Sorted, and neither overlapping nor touching each other.
using CharacterSet = std::vector<CharacterRange>;

/// Sorts and joins.
CharacterSet character_set(std::vector<CharacterRange> ranges);
CharacterSet complement(const CharacterSet& set);

/// The characters of a general category, "Lu" say, or of all that begin with one letter, "L";
/// nothing where the standard has no such category.
std::optional<CharacterSet> category(std::string_view name);
/// The property White_Space.
const CharacterSet& white_space();

bool is_white_space(char32_t character);
/// General category N: what Rust calls numeric.
bool is_number(char32_t character);
/// What \w is in the standard's regular expressions (technical standard 18, annex C): alphabetic
/// characters, marks, decimal digits, connectors and join controls.
bool is_word(char32_t character);

}  // namespace longhaul::runtime

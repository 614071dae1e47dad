#include "runtime/text/unicode.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "runtime/error.h"
#include "runtime/text/unicode_data_impl.h"

namespace longhaul::runtime {
namespace {

/// Categories by number, in order of appearance, and each character's number; and the runs of
/// characters of one category.
struct Categories {
  struct Run {
    std::string_view name;
    CharacterRange range;
  };
  std::vector<std::string_view> names;
  std::vector<std::uint8_t> of;
  std::vector<Run> runs;

  Categories() {
    of.reserve(kCharacters);
    const std::string_view text = unicode::kCategories;
    for (std::size_t at = 0; at < text.size();) {
      const std::string_view name = text.substr(at, 2);
      std::size_t run = 0;
      const char* begin = text.data() + at + name.size();
      at = static_cast<std::size_t>(std::from_chars(begin, text.data() + text.size(), run).ptr -
                                    text.data());
      const auto found = std::ranges::find(names, name);
      const auto number = static_cast<std::uint8_t>(found - names.begin());
      if (found == names.end()) names.push_back(name);
      const auto first = static_cast<char32_t>(of.size());
      of.insert(of.end(), run, number);
      runs.push_back({name, {first, static_cast<char32_t>(of.size()) - 1}});
    }
    LONGHAUL_CHECK(of.size() == kCharacters, "categories of ", of.size(), " characters");
  }
};

const Categories& categories() {
  static const Categories all;
  return all;
}

std::string_view category_of(char32_t character) {
  return categories().names[categories().of[character]];
}

}  // namespace

CharacterSet character_set(std::vector<CharacterRange> ranges) {
  std::ranges::sort(ranges, {}, &CharacterRange::first);
  CharacterSet set;
  for (const CharacterRange& range : ranges) {
    if (!set.empty() && range.first <= set.back().last + 1) {
      set.back().last = std::max(set.back().last, range.last);
    } else {
      set.push_back(range);
    }
  }
  return set;
}

CharacterSet complement(const CharacterSet& set) {
  CharacterSet rest;
  char32_t begin = 0;
  for (const CharacterRange& range : set) {
    if (range.first > begin) rest.push_back({begin, range.first - 1});
    begin = range.last + 1;
  }
  if (begin < kCharacters) rest.push_back({begin, kCharacters - 1});
  return rest;
}

std::optional<CharacterSet> category(std::string_view name) {
  if (name.empty() || name.size() > 2) return std::nullopt;
  std::vector<CharacterRange> ranges;
  for (const Categories::Run& run : categories().runs)
    if (run.name.starts_with(name)) ranges.push_back(run.range);
  CharacterSet set = character_set(std::move(ranges));
  if (set.empty()) return std::nullopt;
  return set;
}

const CharacterSet& white_space() {
  static const CharacterSet set = {
      {0x09, 0x0d},     {0x20, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680},
      {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};
  return set;
}

bool is_white_space(char32_t character) {
  return std::ranges::any_of(white_space(), [&](const CharacterRange& range) {
    return character >= range.first && character <= range.last;
  });
}

bool is_number(char32_t character) { return category_of(character).front() == 'N'; }

bool is_word(char32_t character) {
  const std::string_view name = category_of(character);
  if (name[0] == 'L' || name[0] == 'M' || name == "Nd" || name == "Nl" || name == "Pc") return true;
  // Letters in circles and squares are alphabetic without being letters; join controls.
  return (character >= 0x24b6 && character <= 0x24e9) ||
         (character >= 0x1f130 && character <= 0x1f149) ||
         (character >= 0x1f150 && character <= 0x1f169) ||
         (character >= 0x1f170 && character <= 0x1f189) || character == 0x200c ||
         character == 0x200d;
}

}  // namespace longhaul::runtime

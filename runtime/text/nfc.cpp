#include <algorithm>
#include <charconv>
#include <optional>

#include "runtime/error.h"
#include "runtime/text/nfc_impl.h"
#include "runtime/text/unicode_data_impl.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr char32_t kDataEnd = 0x30000;    // no table says anything of what lies above
constexpr char32_t kFirstUnsafe = 0x300;  // below, nothing joins what stands before it

// Hangul syllables by arithmetic: the standard's chapter 3.12.
constexpr char32_t kSyllables = 0xac00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11a7;
constexpr char32_t kVowelCount = 21, kTailCount = 28, kLeadCount = 19;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

struct Property {
  std::uint16_t decomposition = 0;  // number in `decompositions`, from 1; 0: none
  std::uint8_t combining_class = 0;
  bool may_join = false;  // some pair that composes ends with it
};
struct Decomposition {
  char32_t first = 0, second = 0;  // second 0: one character
};
struct Composition {
  char32_t first = 0, second = 0, composed = 0;
  auto key() const { return std::pair(first, second); }
};

struct Tables {
  std::vector<Property> properties = std::vector<Property>(kDataEnd);
  std::vector<Decomposition> decompositions;
  std::vector<Composition> compositions;  // sorted by key

  Tables() {
    read_classes(unicode::kCombiningClasses);
    read_decompositions(unicode::kDecompositions);
    std::ranges::sort(compositions, {}, &Composition::key);
    for (const Composition& pair : compositions) properties[pair.second].may_join = true;
  }
  const Property& of(char32_t character) const {
    static constexpr Property none;
    return character < kDataEnd ? properties[character] : none;
  }

 private:
  /// The numbers up to ';' or '!', which is `end`.
  struct Entry {
    std::uint32_t numbers[3] = {};
    int count = 0;
    char end = 0;
  };
  static Entry next(std::string_view& text) {
    Entry entry;
    do {
      LONGHAUL_CHECK(entry.count < 3 && !text.empty(), "a table of runtime/text");
      const char* end =
          std::from_chars(text.data(), text.data() + text.size(), entry.numbers[entry.count++], 16)
              .ptr;
      entry.end = *end;
      text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
    } while (entry.end == ' ');
    return entry;
  }
  void read_classes(std::string_view text) {
    for (char32_t at = 0; !text.empty();) {
      const Entry entry = next(text);
      at += entry.numbers[0];
      for (char32_t i = 0; i < entry.numbers[1]; ++i)
        properties[at++].combining_class = static_cast<std::uint8_t>(entry.numbers[2]);
    }
  }
  void read_decompositions(std::string_view text) {
    for (char32_t at = 0; !text.empty();) {
      const Entry entry = next(text);
      at += entry.numbers[0];
      decompositions.push_back({entry.numbers[1], entry.numbers[2]});
      properties[at].decomposition = static_cast<std::uint16_t>(decompositions.size());
      if (entry.count == 3 && entry.end == ';')
        compositions.push_back({entry.numbers[1], entry.numbers[2], at});
    }
  }
};

const Tables& tables() {
  static const Tables all;
  return all;
}

struct Point {
  char32_t character = 0;
  std::uint8_t combining_class = 0;
  std::int64_t origin = 0;
};

void decompose(char32_t character, std::int64_t origin, std::vector<Point>& points) {
  if (character >= kSyllables && character < kSyllables + kSyllableCount) {
    const char32_t index = character - kSyllables;
    points.push_back({kLeads + index / (kVowelCount * kTailCount), 0, origin});
    points.push_back({kVowels + index / kTailCount % kVowelCount, 0, origin});
    if (index % kTailCount != 0) points.push_back({kTails + index % kTailCount, 0, origin});
    return;
  }
  const Property& property = tables().of(character);
  if (property.decomposition == 0) {
    points.push_back({character, property.combining_class, origin});
    return;
  }
  const Decomposition& parts = tables().decompositions[property.decomposition - 1u];
  decompose(parts.first, origin, points);
  if (parts.second != 0) decompose(parts.second, origin, points);
}

std::optional<char32_t> composed(char32_t first, char32_t second) {
  if (first >= kLeads && first < kLeads + kLeadCount && second >= kVowels &&
      second < kVowels + kVowelCount)
    return kSyllables + ((first - kLeads) * kVowelCount + second - kVowels) * kTailCount;
  if (first >= kSyllables && first < kSyllables + kSyllableCount &&
      (first - kSyllables) % kTailCount == 0 && second > kTails && second < kTails + kTailCount)
    return first + second - kTails;
  if (!tables().of(second).may_join) return std::nullopt;
  const auto& pairs = tables().compositions;
  const auto found =
      std::ranges::lower_bound(pairs, std::pair(first, second), {}, &Composition::key);
  if (found == pairs.end() || found->key() != std::pair(first, second)) return std::nullopt;
  return found->composed;
}

/// Canonical order: characters of classes other than 0 sort by class between those of class 0.
void reorder(std::vector<Point>& points) {
  for (auto begin = points.begin(); begin != points.end();) {
    const auto starter = [](const Point& point) { return point.combining_class == 0; };
    begin = std::find_if_not(begin, points.end(), starter);
    const auto end = std::find_if(begin, points.end(), starter);
    std::ranges::stable_sort(begin, end, {}, &Point::combining_class);
    begin = end;
  }
}

void recompose(std::vector<Point>& points) {
  std::size_t size = 0;
  std::optional<std::size_t> starter;
  for (const Point& point : points) {
    // What stands between blocks, unless its class is lower; two of class 0 compose side by side.
    const bool reaches = starter && (size - 1 == *starter ||
                                     points[size - 1].combining_class < point.combining_class);
    if (reaches) {
      if (const auto joined = composed(points[*starter].character, point.character)) {
        points[*starter].character = *joined;
        continue;
      }
    }
    if (point.combining_class == 0) starter = size;
    points[size++] = point;
  }
  points.resize(size);
}

/// Where the first character from U+0300 up begins, at or behind `at`; and the last one before it.
struct Unsafe {
  std::size_t begin = 0, before = 0;
};
Unsafe find_unsafe(std::string_view text, std::size_t at) {
  std::size_t before = at;
  while (at < text.size()) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0xcc) break;  // the lead byte of U+0300
    before = at;
    at += byte < 0x80 ? 1 : 2;
  }
  return {at, before};
}

}  // namespace

TextPart compose(const TextPart& part, TextBuffer& buffer) {
  const std::string_view text = part.text;
  if (find_unsafe(text, 0).begin == text.size()) return part;
  buffer.clear();
  std::vector<Point> points;
  for (std::size_t at = 0; at < text.size();) {
    const Unsafe unsafe = find_unsafe(text, at);
    if (unsafe.begin == text.size()) {
      buffer.copy(part.part(at, text.size() - at));
      break;
    }
    buffer.copy(part.part(at, unsafe.before - at));
    points.clear();
    std::size_t end = unsafe.before;
    while (end < text.size()) {
      const std::string_view rest = text.substr(end);
      const char32_t next = character(rest);
      if (end >= unsafe.begin && next < kFirstUnsafe) break;
      decompose(next, part.origin(end), points);
      end += character_bytes(rest);
    }
    reorder(points);
    recompose(points);
    std::int64_t origin = 0;
    for (const Point& point : points) {
      origin = std::max(origin, point.origin);
      std::string bytes;
      append_utf8(bytes, point.character);
      buffer.put(bytes, origin);
    }
    at = end;
  }
  return buffer.whole();
}

}  // namespace longhaul::runtime

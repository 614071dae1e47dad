// From Oniguruma's syntax to PCRE2's. Where the two differ, or a class of characters would follow
// the library's own version of the Unicode standard, the class is written out or the expression
// refused: possessive intervals, for instance, are none in Oniguruma's default syntax.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "runtime/error.h"
#include "runtime/text/pattern_impl.h"
#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr int kMaxRepeats = 1000;

bool is_ascii_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_ascii_punctuation(char32_t c) {
  return c > ' ' && c < 0x7f && !is_ascii_letter(c) && !(c >= '0' && c <= '9');
}

std::string escaped(char32_t character) {
  return fmt::format("\\x{{{:x}}}", static_cast<unsigned>(character));
}

std::string written_out(const CharacterSet& set, bool negated) {
  std::string text = negated ? "[^" : "[";
  for (const CharacterRange& range : set) {
    // PCRE2 knows no surrogates, and neither does UTF-8.
    for (const CharacterRange part :
         {CharacterRange{range.first, std::min(range.last, char32_t{0xd7ff})},
          CharacterRange{std::max(range.first, char32_t{0xe000}), range.last}}) {
      if (part.first > part.last) continue;
      text += escaped(part.first);
      if (part.last > part.first) text += "-" + escaped(part.last);
    }
  }
  return text + "]";
}

class Translation {
 public:
  Translation(std::string_view pattern, const std::string& place)
      : pattern_(pattern), place_(place) {
    if (valid_utf8_bytes(pattern) < pattern.size()) refuse("bytes that are no UTF-8");
  }

  std::string run() {
    while (at_ < pattern_.size()) {
      const char32_t c = take();
      if (c == '\\') {
        const CharacterSet set = escape();
        out_ += set.size() == 1 && set[0].first == set[0].last ? escaped(set[0].first)
                                                               : written_out(set, false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        interval();
      } else if (c == '.') {
        out_ += "[^\\n]";
      } else if (c == '^' || c == '$') {
        refuse(fmt::format("the anchor '{}'", static_cast<char>(c)));
      } else if (c == '|' || c == ')' || c == '*' || c == '+' || c == '?') {
        out_ += static_cast<char>(c);
      } else {
        out_ += escaped(c);
      }
    }
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ExitCode::data, place_, ": the regular expression '", pattern_, "' has ", what,
         " at byte ", at_, ", which is not supported");
  }
  char32_t peek() const { return at_ < pattern_.size() ? character(pattern_.substr(at_)) : 0; }
  char32_t take() {
    const std::string_view rest = pattern_.substr(at_);
    at_ += character_bytes(rest);
    return character(rest);
  }
  bool take_if(std::string_view text) {
    if (!pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  /// What a backslash, already taken, stands for: one character or a class.
  CharacterSet escape() {
    if (at_ == pattern_.size()) refuse("a backslash at its end");
    const char32_t c = take();
    switch (c) {
      case 's':
        return white_space();
      case 'S':
        return complement(white_space());
      case 'd':
        return *category("Nd");
      case 'D':
        return complement(*category("Nd"));
      case 'p':
      case 'P':
        return property(c == 'P');
      case 'n':
        return {{'\n', '\n'}};
      case 'r':
        return {{'\r', '\r'}};
      case 't':
        return {{'\t', '\t'}};
      case 'f':
        return {{'\f', '\f'}};
      default:
        break;
    }
    if (!is_ascii_punctuation(c) && c != ' ')
      refuse(fmt::format("the escape '\\{}'", pattern_.substr(at_ - 1, 1)));
    return {{c, c}};
  }

  CharacterSet property(bool negated) {
    const std::size_t close = pattern_.find('}', at_);
    if (peek() != '{' || close == std::string_view::npos) refuse("'\\p' without a name in braces");
    std::string_view name = pattern_.substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    if (name.starts_with('^')) negated = !negated, name.remove_prefix(1);
    const auto set = category(name);
    if (!set) refuse(fmt::format("the property '{}', no general category such as L or Lu", name));
    return negated ? complement(*set) : *set;
  }

  void character_class() {
    const bool negated = take_if("^");
    std::vector<CharacterRange> ranges;
    if (peek() == ']') refuse("a class of characters that begins with ']'");
    while (true) {
      if (at_ == pattern_.size()) refuse("a class of characters without an end");
      if (take_if("]")) break;
      const CharacterSet item = class_item();
      const bool single = item.size() == 1 && item[0].first == item[0].last;
      const std::string_view rest = pattern_.substr(at_);
      if (!rest.starts_with('-') || rest.starts_with("-]")) {
        ranges.insert(ranges.end(), item.begin(), item.end());
        continue;
      }
      ++at_;
      if (at_ == pattern_.size()) refuse("a class of characters without an end");
      const CharacterSet last = class_item();
      if (!single || last.size() != 1 || last[0].first != last[0].last ||
          last[0].first < item[0].first)
        refuse("a range whose ends are no two characters in order");
      ranges.push_back({item[0].first, last[0].last});
    }
    const CharacterSet set = character_set(std::move(ranges));
    out_ += written_out(set, negated);
  }

  CharacterSet class_item() {
    if (pattern_.substr(at_).starts_with("&&")) refuse("'&&' between classes of characters");
    const char32_t c = take();
    if (c == '\\') return escape();
    if (c == '[') refuse("a class of characters inside another");
    return {{c, c}};
  }

  void group() {
    if (!take_if("?")) {
      out_ += "(?:";  // what it captures is of no use here
      return;
    }
    for (const std::string_view kind : {":", "=", "!", ">"}) {
      if (!take_if(kind)) continue;
      out_ += "(?" + std::string(kind);
      return;
    }
    if (!take_if("i:")) refuse("a group of an unknown kind");
    caseless();
  }

  /// Inside, only letters of ASCII, whose other cases both libraries know, and no two of them that
  /// Oniguruma would also find as one character (U+00DF is "ss", U+FB01 is "fi").
  void caseless() {
    const std::size_t close = pattern_.find(')', at_);
    const std::string_view body = pattern_.substr(at_, close - at_);
    const bool plain = std::ranges::all_of(body, [](char c) {
      return is_ascii_letter(static_cast<unsigned char>(c)) || c == '\'' || c == '|';
    });
    std::string lower(body);
    for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    bool joins = false;
    for (const char* pair : {"ss", "st", "ff", "fi", "fl"})
      joins = joins || lower.find(pair) != std::string::npos;
    if (close == std::string_view::npos || !plain || joins)
      refuse("a caseless group of more than plain words");
    out_ += fmt::format("(?i:{})", body);
    at_ = close + 1;
  }

  void interval() {
    const std::size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) refuse("'{' without '}'");
    const std::string_view body = pattern_.substr(at_, close - at_);
    const std::size_t comma = std::min(body.find(','), body.size());
    const auto counts = [](std::string_view text) {
      int value = kMaxRepeats + 1;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      return error == std::errc() && end == text.data() + text.size() && value >= 0 &&
             value <= kMaxRepeats;
    };
    const bool open = comma + 1 >= body.size();  // "{2}" and "{2,}"
    if (!counts(body.substr(0, comma)) || !(open || counts(body.substr(comma + 1)))) {
      refuse(fmt::format("the interval '{{{}}}', not of one or two numbers up to {}", body,
                         kMaxRepeats));
    }
    at_ = close + 1;
    if (peek() == '+' || peek() == '?') refuse("a possessive or lazy interval");
    out_ += fmt::format("{{{}}}", body);
  }

  const std::string_view pattern_;
  const std::string& place_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma, const std::string& place) {
  return Translation(oniguruma, place).run();
}

}  // namespace longhaul::runtime

#pragma once
// Private to runtime/text: regular expressions as tokenizer.json writes them.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace longhaul::runtime {

/// An expression in Oniguruma's syntax, as far as it means the same to PCRE2 once classes of
/// characters are written out by runtime/text/unicode.h. Throws Error(data) naming `place` and what
/// it does not know.
std::string pcre2_pattern(std::string_view oniguruma, const std::string& place);

/// A compiled expression; just-in-time where PCRE2 can. Thread-safe.
class Pattern {
 public:
  /// `oniguruma` as above. Throws Error(data), for an expression that can match nothing as well.
  Pattern(std::string_view oniguruma, std::string place);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  /// What a thread needs to match any pattern.
  class Room {
   public:
    Room();
    ~Room();
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

   private:
    friend class Pattern;
    struct State;
    std::unique_ptr<State> state_;
  };
  struct Match {
    std::size_t begin = 0, end = 0;
  };
  /// The first match that begins at `from` or behind it, which looks at nothing outside `text`, a
  /// text in UTF-8. Throws Error(data) for a text on which matching needs too many steps.
  std::optional<Match> find(std::string_view text, std::size_t from, Room& room) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::string place_;
};

}  // namespace longhaul::runtime

#pragma once
// Private to runtime/text: tokens that are cut out of a text before anything divides it.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

struct AddedToken {
  std::string content;  ///< as it is looked for
  std::int32_t id = 0;
  bool single_word = false;             ///< not beside a character of a word
  bool lstrip = false, rstrip = false;  ///< takes the white space on that side
  bool special = false;                 ///< says something about a text, and is no part of it
};

/// A set of them, all looked for at once: leftmost, then longest.
class AddedTokens {
 public:
  /// Contents are not empty. Of equal contents the first counts.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Section {
    std::size_t begin = 0, end = 0;
    std::int32_t id = -1;  ///< of the token that is here; -1: text
  };
  /// Divides a text, valid UTF-8; text sections are not empty. A section may begin before the end
  /// of the one before it: where a token has taken the white space with which the next begins.
  void divide(std::string_view text, std::vector<Section>& sections) const;

 private:
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  bool begins_[256] = {};           // whether a token's content begins with a byte
};

}  // namespace longhaul::runtime

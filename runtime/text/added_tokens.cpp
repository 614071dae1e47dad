#include "runtime/text/added_tokens_impl.h"

#include <algorithm>

#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

/// Bytes of the last character of a text in UTF-8, which is not empty.
std::size_t last_character_bytes(std::string_view text) {
  std::size_t size = 1;
  while (size < text.size() &&
         (static_cast<unsigned char>(text[text.size() - size]) & 0xc0) == 0x80)
    ++size;
  return size;
}

bool begins_with_word(std::string_view text) { return !text.empty() && is_word(character(text)); }
bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word(character(text.substr(text.size() - last_character_bytes(text))));
}

std::size_t space_before(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    const std::size_t size = last_character_bytes(text.substr(0, end));
    if (!is_white_space(character(text.substr(end - size)))) break;
    end -= size;
  }
  return text.size() - end;
}

std::size_t space_behind(std::string_view text) {
  std::size_t size = 0;
  while (size < text.size() && is_white_space(character(text.substr(size))))
    size += character_bytes(text.substr(size));
  return size;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::ranges::stable_sort(tokens_, {}, &AddedToken::content);
  const auto repeated = std::ranges::unique(tokens_, {}, &AddedToken::content);
  tokens_.erase(repeated.begin(), repeated.end());
  for (const AddedToken& token : tokens_)
    begins_[static_cast<unsigned char>(token.content[0])] = true;
}

/// Narrows the sorted tokens down to those that agree with the text so far, a byte at a time.
const AddedToken* AddedTokens::longest_at(std::string_view text, std::size_t at) const {
  const AddedToken* longest = nullptr;
  auto begin = tokens_.begin(), end = tokens_.end();
  for (std::size_t depth = 0; begin != end; ++depth) {
    if (begin->content.size() == depth) longest = &*begin++;  // a prefix of the others sorts first
    if (at + depth == text.size()) break;
    const auto byte = [&](const AddedToken& token) {
      return static_cast<unsigned char>(token.content[depth]);
    };
    const auto range = std::ranges::equal_range(
        begin, end, static_cast<unsigned char>(text[at + depth]), {}, byte);
    begin = range.begin(), end = range.end();
  }
  return longest;
}

void AddedTokens::divide(std::string_view text, std::vector<Section>& sections) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token =
        begins_[static_cast<unsigned char>(text[at])] ? longest_at(text, at) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word &&
        (ends_with_word(text.substr(0, begin)) || begins_with_word(text.substr(end))))
      continue;
    if (token->lstrip) begin -= space_before(text.substr(0, begin));
    if (token->rstrip) end += space_behind(text.substr(end));
    if (done < begin) sections.push_back({done, begin});
    sections.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) sections.push_back({done, text.size()});
}

}  // namespace longhaul::runtime

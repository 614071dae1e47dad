#include "runtime/config/expand.h"

#include <cstdlib>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_in_name(char c) { return starts_name(c) || (c >= '0' && c <= '9'); }

/// The end of the variable name that begins at `begin`; `begin` where there is none.
std::size_t name_end(const std::string& text, std::size_t begin) {
  if (begin >= text.size() || !starts_name(text[begin])) return begin;
  std::size_t end = begin;
  while (end < text.size() && is_in_name(text[end])) ++end;
  return end;
}

/// Adds the variable's value. False, with the reason, when it has none.
bool append_variable(const std::string& name, ExpandedPath& result) {
  const char* value = std::getenv(name.c_str());
  if (value != nullptr && *value != '\0') {
    result.path += value;
    return true;
  }
  result.wrong =
      concat("the environment variable ", name, " is ", value == nullptr ? "not set" : "empty",
             "; set it, or write the path out ($$ stands for a dollar sign)");
  return false;
}

}  // namespace

ExpandedPath expand_path(const std::string& text) {
  ExpandedPath result;
  std::size_t at = 0;
  if (text.starts_with('~')) {
    if (text.size() > 1 && text[1] != '/') {
      const std::string user = text.substr(0, text.find('/'));
      result.wrong = concat("the home of another user (", user,
                            ") is not looked up; write the path out, or ./", user,
                            " for something of that name");
      return result;
    }
    if (!append_variable("HOME", result)) return result;
    at = 1;
  }
  while (at < text.size()) {
    const std::size_t dollar = text.find('$', at);
    result.path.append(text, at, dollar - at);
    if (dollar == std::string::npos) break;
    const bool braced = dollar + 1 < text.size() && text[dollar + 1] == '{';
    const std::size_t begin = dollar + (braced ? 2 : 1), end = name_end(text, begin);
    if (braced && (end == begin || end == text.size() || text[end] != '}')) {
      result.wrong = concat("'", text.substr(dollar),
                            "' does not begin with ${NAME}; $$ stands for "
                            "a dollar sign");
      return result;
    }
    if (end == begin) {  // no name: a dollar sign, or two that stand for one
      result.path += '$';
      at = begin + (begin < text.size() && text[begin] == '$' ? 1 : 0);
      continue;
    }
    if (!append_variable(text.substr(begin, end - begin), result)) return result;
    at = end + (braced ? 1 : 0);
  }
  return result;
}

std::string unexpanded_path(const std::string& path) {
  std::string text;
  for (const char c : path) text += c == '$' ? "$$" : std::string(1, c);
  return text;
}

}  // namespace longhaul::runtime

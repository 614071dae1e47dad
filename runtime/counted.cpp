#include "runtime/counted.h"

namespace longhaul::runtime {
namespace {

std::string plural(std::string_view noun) {
  std::string text(noun);
  const auto ends = [&](std::string_view end) { return noun.ends_with(end); };
  if (ends("s") || ends("x") || ends("ch") || ends("sh")) return text + "es";
  const std::string_view vowels = "aeiou";
  if (ends("y") && noun.size() > 1 && vowels.find(noun[noun.size() - 2]) == vowels.npos) {
    text.pop_back();
    return text + "ies";
  }
  return text + "s";
}

}  // namespace

std::string grouped(std::int64_t value) {
  std::string digits = std::to_string(value);
  const std::size_t first = value < 0 ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string counted(std::int64_t count, std::string_view noun) {
  return grouped(count) + " " + (count == 1 ? std::string(noun) : plural(noun));
}

}  // namespace longhaul::runtime

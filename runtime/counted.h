#pragma once
// Numbers with their nouns, for people.

#include <cstdint>
#include <string>
#include <string_view>

namespace longhaul::runtime {

/// 1234567 -> "1,234,567".
std::string grouped(std::int64_t value);

/// "1 rank", "2 ranks", "12,345 passes", "0 entries": the number, grouped, and its noun, given in
/// the singular.
std::string counted(std::int64_t count, std::string_view noun);

}  // namespace longhaul::runtime

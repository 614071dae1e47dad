#include "launch/longest.h"

namespace longhaul::launch {

std::int64_t longest_fitting(std::int64_t unit, std::int64_t available,
                             const std::function<std::int64_t(std::int64_t tokens)>& bytes_of) {
  const auto fits = [&](std::int64_t units) { return bytes_of(units * unit) <= available; };
  if (!fits(1)) return 0;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;  // units: beyond any memory
  std::int64_t fitting = 1, beyond = 2;
  while (beyond < kMost && fits(beyond)) {
    fitting = beyond;
    beyond *= 2;
  }
  while (beyond - fitting > 1) {
    const std::int64_t middle = fitting + (beyond - fitting) / 2;
    (fits(middle) ? fitting : beyond) = middle;
  }
  return fitting * unit;
}

}  // namespace longhaul::launch

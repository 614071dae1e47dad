// Uses one function of an installed library and, through all_headers.h, every installed header.
#include <cstdio>

#include "all_headers.h"
#include "attention/mask.h"

int main() {
  using longhaul::attention::Mask;
  constexpr std::int64_t kTokens = 100;
  const std::int64_t area = Mask::causal(kTokens).area();
  std::printf("a causal mask over %lld tokens has %lld pairs\n", static_cast<long long>(kTokens),
              static_cast<long long>(area));
  return area == kTokens * (kTokens + 1) / 2 ? 0 : 1;
}

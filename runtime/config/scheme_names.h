#pragma once
// The one list of attention schemes: what a configuration may name, in the order in which it is
// shown, and what parallel/schemes/ defines. A scheme is a file there and a line here.

#define LONGHAUL_SCHEMES(SCHEME) \
  SCHEME(ring)                   \
  SCHEME(burst)                  \
  SCHEME(auto)                   \
  SCHEME(double_ring)            \
  SCHEME(ring_self_attention)    \
  SCHEME(balanced_ring)          \
  SCHEME(all_gather)             \
  SCHEME(ulysses)                \
  SCHEME(usp)                    \
  SCHEME(group_cast)

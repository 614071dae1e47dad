#pragma once
// The two degrees of a nested scheme: how many ranks (or members) outside, how many inside.

#include <functional>
#include <optional>
#include <vector>

namespace longhaul::parallel {

struct Degrees {
  int outer = 1, inner = 1;
};
using LegalDegrees = std::function<bool(const Degrees&)>;

/// The legal ones whose product is `ranks`, inner rising.
std::vector<Degrees> legal_degrees(int ranks, const LegalDegrees& legal);
/// Of those, what a scheme takes when it may choose: inner the largest up to the square root of
/// `ranks`, or else the least above it. nullopt where none are.
std::optional<Degrees> choose_degrees(int ranks, const LegalDegrees& legal);

}  // namespace longhaul::parallel

#pragma once
// The two degrees of a nested scheme: how many ranks (or members) outside, how many inside.

#include <functional>
#include <optional>
#include <string>
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

struct Degrees {
  int outer = 1, inner = 1;
};

/// "outer=2,inner=4", either alone, or "auto". Throws Error(config).
void set_degrees(SchemeOptions& options, const std::string& text);

using LegalDegrees = std::function<bool(const Degrees&)>;
inline bool all_degrees(const Degrees&) { return true; }

/// The degrees that `options` asks of `ranks`: a missing one follows from the other; without
/// either, inner is the largest divisor of `ranks` up to its square root that is legal. nullopt
/// where none are.
std::optional<Degrees> resolve_degrees(const SchemeOptions& options, int ranks,
                                       const LegalDegrees& legal = all_degrees);
std::optional<Refusal> refuse_degrees(const Combination& combination,
                                      const LegalDegrees& legal = all_degrees);

/// The degrees that a combination gets when it asks for none; nullopt for a scheme of one level, or
/// where none are legal.
std::optional<Degrees> automatic_degrees(const Combination& combination);

}  // namespace longhaul::parallel

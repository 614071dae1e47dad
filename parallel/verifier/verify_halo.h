#pragma once
// Proves a halo schedule (parallel/halo.h).

#include <cstdint>
#include <span>

#include "parallel/verifier/verifier.h"

namespace longhaul::parallel {

/// Form, hazards, deadlock, and that every rank's halo holds, in order, the tokens that a causal
/// convolution of width `conv_width` reads before each of the rank's runs (backward: that read each
/// run from behind it) within the document; found token by token, with no code of the generator.
/// `documents`: offsets over the layout's tokens.
Verdict verify_halo(const Schedule& schedule, std::span<const std::int64_t> documents,
                    std::int64_t conv_width, const Layout& layout);

}  // namespace longhaul::parallel

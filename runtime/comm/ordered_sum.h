#pragma once
// The sum that makes every host backend agree bit for bit.

#include <span>

#include "runtime/dtype.h"

namespace longhaul::runtime::detail {

/// out[i] = ((terms[0][i] + terms[1][i]) + terms[2][i]) + ...; `out` may be one of the terms.
/// float32 or float64. Uses the calling stream's OpenMP threads; the result does not depend on
/// their number.
void ordered_sum(std::span<const std::byte* const> terms, std::byte* out, std::int64_t elements,
                 DType dtype);

}  // namespace longhaul::runtime::detail

#pragma once
// Private to runtime/: AMX's samples, behind peak.h. Only where Unit::tiles is had.

#include <cstdint>

namespace longhaul::runtime::detail {

/// Four products of tiles a step, into four tiles of sums: 16 cycles each at the full rate, and as
/// many as their latency of 52 needs.
constexpr std::int64_t kTileSteps = 2'000;
constexpr double kTileSampleFlops = 2.0 * 16 * 16 * 32 * 4 * static_cast<double>(kTileSteps);
void sample_tiles();
/// Every step loads its two tiles of each side from 16 KiB, which the first cache holds.
void sample_tiles_from_memory();

}  // namespace longhaul::runtime::detail

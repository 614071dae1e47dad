#pragma once
// How fast memory is read and written: what kernels that compute little are compared with.

#include <cstdint>

#include "runtime/rate.h"

namespace longhaul::runtime {

/// Twice the third caches of the CPUs that this process may use, 64 MiB at least: what no cache
/// holds.
std::int64_t uncached_bytes();

/// a[i] = b[i] + s c[i] over float32 arrays of uncached_bytes() each, which the threads share:
/// bytes a second, three numbers an element (the line of a that a store reads first is not
/// counted). Source: McCalpin 1995 (STREAM).
Rate measure_triad(int threads, double seconds);

/// memcpy of so many bytes by each thread, between two buffers of its own: bytes copied a second.
Rate measure_memcpy(std::int64_t bytes, int threads, double seconds);

}  // namespace longhaul::runtime

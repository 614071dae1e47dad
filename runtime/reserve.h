#pragma once
// Memory that a stream takes from the system before it is asked for.

#include <cstdint>

#include "runtime/stream.h"

namespace longhaul::runtime {

/// The stream's pool holds, from now on, a free part of `bytes`: the next buffer of that size, or
/// several that fit into it, take nothing from the system. On CUDA that could make the driver wait
/// for the device's work while a stream waits for another rank. Not counted by memory() as in use.
/// Throws Error(memory).
void reserve_memory(const Stream& stream, std::int64_t bytes);

}  // namespace longhaul::runtime

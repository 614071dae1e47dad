#pragma once
// Memory that a stream takes from the system before it is asked for.

#include <cstdint>

#include "runtime/stream.h"

namespace longhaul::runtime {

/// The stream's pool holds, from now on, room for `buffers` more that are together `bytes`, at
/// once: they take nothing from the system. On CUDA that could make the driver wait for the
/// device's work while a stream waits for another rank. Not counted by memory() as in use. Throws
/// Error(memory).
void reserve_memory(const Stream& stream, std::int64_t bytes, std::int64_t buffers = 1);
/// The same of what Stream::allocate_host() gives.
void reserve_host_memory(const Stream& stream, std::int64_t bytes, std::int64_t buffers = 1);

}  // namespace longhaul::runtime

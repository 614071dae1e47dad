#pragma once
// Streams that are busy without computing.

#include <functional>

#include "runtime/stream.h"

namespace longhaul::runtime {

/// Enqueues `work`, which takes its time on a CPU stream, and then a sleep until `seconds` have
/// passed since it began. What a sleep takes too long the stream's next one makes up for, as far as
/// the stream was not blocked on an event meanwhile: many in a row last the sum of their seconds. A
/// sleep ends some 60 us late on an idle machine and costs 50 us of CPU time at most. Throws
/// Error(internal) on a CUDA stream.
void occupy(const Stream& stream, double seconds, std::function<void()> work);

}  // namespace longhaul::runtime

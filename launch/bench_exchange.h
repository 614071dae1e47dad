#pragma once
// How fast two ranks exchange messages.

#include <cstdint>
#include <vector>

#include "launch/timing.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// Messages of one size.
struct ExchangeTimes {
  std::int64_t bytes = 0;
  bool both_ways = false;            ///< else from rank 0 to rank 1
  Spread seconds;                    ///< of one exchange, begun together: the slower rank's
  double bytes_per_second() const {  ///< of one direction, at the median
    return static_cast<double>(bytes) / seconds.median;
  }
};

/// Of 1, 16 and 64 MiB, one way and both. Collective over a communicator of two ranks; blocks.
std::vector<ExchangeTimes> measure_exchanges(runtime::Communicator& world, const Repeats& repeats);

}  // namespace longhaul::launch

#pragma once
// What stretches of a stream's work take, added up.

#include <cstdint>
#include <memory>

#include "runtime/stream.h"

namespace longhaul::runtime {

/// Totals of stretches that are over.
struct WorkTimes {
  double seconds = 0;  ///< wall time on the CPU, the device's own on CUDA
  /// Thread-CPU time of all threads of the stream's team, with what they spin waiting for each
  /// other; on CUDA 0: not measured.
  double cpu_seconds = 0;
  std::int64_t work = 0;  ///< in the caller's unit
};

/// Measures the stretches of a stream between start() and stop(), which do not nest. Both only
/// enqueue: two readings of clocks a stretch. May go before what it measures is over.
class WorkClock {
 public:
  WorkClock();
  ~WorkClock();
  void start(const Stream& stream);
  /// `work`: what the stretch has done.
  void stop(const Stream& stream, std::int64_t work);
  /// Counts, in the stream's order, what was not measured.
  void add(const Stream& stream, const WorkTimes& times);
  /// On any thread; of what is over when it is called.
  WorkTimes times() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace longhaul::runtime

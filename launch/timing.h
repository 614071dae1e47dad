#pragma once
// Times of work on a stream, repeated: how benchmarks measure.

#include <functional>
#include <vector>

#include "runtime/stream.h"

namespace longhaul::launch {

/// What repetitions took, in seconds. Quartiles lie between the two nearest times where they fall
/// between them.
struct Spread {
  int count = 0;
  double least = 0, lower = 0, median = 0, upper = 0, most = 0;
};
/// Of at least one time, in any order.
Spread spread_of(std::vector<double> seconds);

struct Repeats {
  int warm_up = 2;     ///< that do not count; at least 1
  int most = 20;       ///< that count
  int least = 3;       ///< of them, also where they take longer than `seconds`
  double seconds = 1;  ///< for all that count, judged by the last warm-up
};
/// How many repetitions fit, when one takes `one_seconds`.
int repetitions(const Repeats& repeats, double one_seconds);

/// Work that only enqueues on the stream that it is timed on.
using Enqueue = std::function<void()>;

/// Runs the work again and again; returns what each that counts took on the stream: on CUDA by the
/// device's clock, from the event before its first kernel to the one behind its last. They are all
/// enqueued before the first is waited for, so that a device is never idle between them.
Spread time_on_stream(const runtime::Stream& stream, const Repeats& repeats, const Enqueue& work);

/// Times of several that took turns.
class Turns {
 public:
  explicit Turns(std::vector<std::vector<double>> seconds) : seconds_(std::move(seconds)) {}
  Spread spread(std::size_t work) const { return spread_of(seconds_[work]); }
  /// How long `work` took as often as `than`: the median over turns, in which both ran next to each
  /// other, so that a clock that drifts cancels.
  double ratio(std::size_t work, std::size_t than) const;

 private:
  std::vector<std::vector<double>> seconds_;  ///< by work, then turn
};
/// The same of several, each in turn; `repeats` are of turns.
Turns time_in_turn(const runtime::Stream& stream, const Repeats& repeats,
                   const std::vector<Enqueue>& works);

}  // namespace longhaul::launch

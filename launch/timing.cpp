#include "launch/timing.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

runtime::Deadline deadline() { return runtime::deadline_in(3600); }

struct Interval {
  runtime::Event begin, end;
  double seconds() const { return runtime::seconds_between(begin, end); }
};

Interval enqueue_timed(const runtime::Stream& stream, const std::function<void()>& enqueue) {
  Interval interval;
  interval.begin = stream.record_timed();
  enqueue();
  interval.end = stream.record_timed();
  return interval;
}

/// The value a fraction of the way through sorted ones.
double quantile(const std::vector<double>& sorted, double fraction) {
  const double at = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - std::floor(at)) * (sorted[above] - sorted[below]);
}

}  // namespace

Spread spread_of(std::vector<double> seconds) {
  LONGHAUL_CHECK(!seconds.empty(), "the spread of no times");
  std::ranges::sort(seconds);
  return {static_cast<int>(seconds.size()), seconds.front(),         quantile(seconds, 0.25),
          quantile(seconds, 0.5),           quantile(seconds, 0.75), seconds.back()};
}

int repetitions(const Repeats& repeats, double one_seconds) {
  if (!(one_seconds * repeats.most > repeats.seconds)) return repeats.most;
  const int fitting = static_cast<int>(repeats.seconds / one_seconds);
  return std::clamp(fitting, std::min(repeats.least, repeats.most), repeats.most);
}

Spread time_on_stream(const runtime::Stream& stream, const Repeats& repeats,
                      const std::function<void()>& enqueue) {
  LONGHAUL_CHECK(repeats.warm_up >= 1 && repeats.most >= 1, repeats.warm_up, " warm-ups and ",
                 repeats.most, " repetitions; expected at least one of each");
  double last = 0;
  for (int i = 0; i < repeats.warm_up; ++i) {
    const Interval interval = enqueue_timed(stream, enqueue);
    stream.synchronize(deadline());
    last = interval.seconds();
  }
  std::vector<Interval> intervals;
  for (int i = repetitions(repeats, last); i > 0; --i)
    intervals.push_back(enqueue_timed(stream, enqueue));
  stream.synchronize(deadline());
  std::vector<double> seconds;
  for (const Interval& interval : intervals) seconds.push_back(interval.seconds());
  return spread_of(std::move(seconds));
}

}  // namespace longhaul::launch

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

Interval enqueue_timed(const runtime::Stream& stream, const Enqueue& enqueue) {
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

Spread time_on_stream(const runtime::Stream& stream, const Repeats& repeats, const Enqueue& work) {
  return time_in_turn(stream, repeats, {work}).spread(0);
}

double Turns::ratio(std::size_t work, std::size_t than) const {
  std::vector<double> ratios;
  for (std::size_t turn = 0; turn < seconds_[work].size(); ++turn)
    ratios.push_back(seconds_[work][turn] / seconds_[than][turn]);
  return spread_of(std::move(ratios)).median;
}

Turns time_in_turn(const runtime::Stream& stream, const Repeats& repeats,
                   const std::vector<Enqueue>& works) {
  LONGHAUL_CHECK(repeats.warm_up >= 1 && repeats.most >= 1, repeats.warm_up, " warm-ups and ",
                 repeats.most, " repetitions; expected at least one of each");
  double last = 0;
  for (int i = 0; i < repeats.warm_up; ++i) {
    last = 0;
    for (const Enqueue& work : works) {
      const Interval interval = enqueue_timed(stream, work);
      stream.synchronize(deadline());
      last += interval.seconds();
    }
  }
  std::vector<std::vector<Interval>> intervals(works.size());
  for (int turn = repetitions(repeats, last); turn > 0; --turn) {
    for (std::size_t work = 0; work < works.size(); ++work)
      intervals[work].push_back(enqueue_timed(stream, works[work]));
  }
  stream.synchronize(deadline());
  std::vector<std::vector<double>> seconds;
  for (const auto& of_work : intervals) {
    auto& times = seconds.emplace_back();
    for (const Interval& interval : of_work) times.push_back(interval.seconds());
  }
  return Turns(std::move(seconds));
}

}  // namespace longhaul::launch

#include "runtime/work_clock.h"

#include <deque>
#include <mutex>

#include "runtime/rate.h"

namespace longhaul::runtime {
namespace {

/// Of the calling thread and those that its parallel regions of so many threads consist of.
double team_cpu_seconds(int threads) {
  if (threads == 1) return thread_cpu_seconds();
  double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  sum += thread_cpu_seconds();
  return sum;
}

}  // namespace

struct WorkClock::State {
  /// Of a CUDA stream, whose device is asked when it is over.
  struct Stretch {
    Event begin, end;
    std::int64_t work = 0;
  };

  void add(const WorkTimes& times) {
    std::lock_guard lock(mutex);
    total.seconds += times.seconds;
    total.cpu_seconds += times.cpu_seconds;
    total.work += times.work;
  }
  /// With the lock held. Stretches of a stream are over in their order.
  void collect() {
    while (!stretches.empty() && stretches.front().end.complete()) {
      total.seconds += seconds_between(stretches.front().begin, stretches.front().end);
      total.work += stretches.front().work;
      stretches.pop_front();
    }
  }

  std::mutex mutex;
  WorkTimes total;
  std::deque<Stretch> stretches;
  Event begin;                 // of the stretch being enqueued, on CUDA
  Clock::time_point begun_at;  // of the one that runs, on the CPU
  double cpu_seconds_at_begin = 0;
};

WorkClock::WorkClock() : state_(std::make_shared<State>()) {}
WorkClock::~WorkClock() = default;

void WorkClock::start(const Stream& stream) {
  if (stream.device().kind == DeviceKind::cuda) {
    state_->begin = stream.record_timed();
    return;
  }
  stream.cpu_task([state = state_, threads = stream.threads()] {
    state->cpu_seconds_at_begin = team_cpu_seconds(threads);
    state->begun_at = Clock::now();
  });
}

void WorkClock::stop(const Stream& stream, std::int64_t work) {
  if (stream.device().kind == DeviceKind::cuda) {
    std::lock_guard lock(state_->mutex);
    state_->collect();
    state_->stretches.push_back({std::move(state_->begin), stream.record_timed(), work});
    return;
  }
  stream.cpu_task([state = state_, threads = stream.threads(), work] {
    const std::chrono::duration<double> seconds = Clock::now() - state->begun_at;
    state->add({seconds.count(), team_cpu_seconds(threads) - state->cpu_seconds_at_begin, work});
  });
}

void WorkClock::add(const Stream& stream, const WorkTimes& times) {
  stream.host_task([state = state_, times] { state->add(times); });
}

WorkTimes WorkClock::times() const {
  std::lock_guard lock(state_->mutex);
  state_->collect();
  return state_->total;
}

}  // namespace longhaul::runtime

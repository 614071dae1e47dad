#include "runtime/wake.h"

#include <chrono>

#include "runtime/stream.h"

namespace longhaul::runtime {
namespace {

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void stay_busy(double seconds) {
  for (const auto begin = Clock::now(); seconds_since(begin) < seconds;) {
  }
}

}  // namespace

WakeTimes measure_wake(int threads, double idle_seconds, int count) {
  constexpr double kTimeout = 60;
  WakeTimes times;
  const Stream stream = Stream::cpu("waking", threads);
  stream.cpu_task([&] {
    for (int i = -1; i < count; ++i) {  // the first makes the team
      stay_busy(idle_seconds);
      const auto begin = Clock::now();
#pragma omp parallel num_threads(threads)
      asm volatile("" : : : "memory");
      if (i >= 0) times.region.push_back(seconds_since(begin));
    }
  });
  stream.synchronize(deadline_in(kTimeout));
  for (int i = 0; i < count; ++i) {
    stay_busy(idle_seconds);
    double took = 0;
    const auto begin = Clock::now();
    stream.cpu_task([&] { took = seconds_since(begin); });
    stream.synchronize(deadline_in(kTimeout));
    times.task.push_back(took);
  }
  return times;
}

}  // namespace longhaul::runtime

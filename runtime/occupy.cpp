#include "runtime/occupy.h"

#include <algorithm>
#include <thread>

#include "runtime/stream_impl.h"

namespace longhaul::runtime {
namespace {

using Seconds = std::chrono::duration<double>;

/// Before its end a sleep gives way to looking at the clock: the system wakes threads about so
/// late.
constexpr std::chrono::microseconds kWatched{50};

/// Of the stream whose thread this is.
struct Overslept {
  Clock::duration by{};       ///< when its last sleep ended
  double waited_seconds = 0;  ///< that it had been blocked on events until then
};
thread_local Overslept overslept;

void sleep_until(Clock::time_point end) {
  if (Clock::now() < end - kWatched) std::this_thread::sleep_until(end - kWatched);
  while (Clock::now() < end) {
  }
}

}  // namespace

void occupy(const Stream& stream, double seconds, std::function<void()> work) {
  // A task must not own its stream, which outlives its tasks.
  const detail::StreamImpl* impl = stream.impl().get();
  stream.cpu_task([impl, seconds, work = std::move(work)] {
    const Clock::time_point begin = Clock::now();
    const auto blocked = std::chrono::duration_cast<Clock::duration>(
        Seconds(impl->waited_seconds() - overslept.waited_seconds));
    const Clock::duration owed = std::max(overslept.by - blocked, Clock::duration{});
    const Clock::time_point end =
        begin - owed + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
    work();
    sleep_until(end);
    overslept = {Clock::now() - end, impl->waited_seconds()};
  });
}

}  // namespace longhaul::runtime

#include "runtime/rate.h"

#include <algorithm>
#include <barrier>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <mutex>
#include <thread>

#include "runtime/error.h"
#include "runtime/stream.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kFewest = 5;  // samples

Rate sampled(const Sample& sample, double amount, double seconds) {
  std::vector<double> rates;
  double busy = 0;
  const auto begin = Clock::now(), end = deadline_in(seconds);
  do {
    const double start = thread_cpu_seconds();
    sample();
    const double took = thread_cpu_seconds() - start;
    busy += took;
    rates.push_back(amount / took);
  } while (Clock::now() < end || rates.size() < kFewest);
  const std::chrono::duration<double> passed = Clock::now() - begin;
  std::ranges::sort(rates);
  const std::size_t last = rates.size() - 1;
  return {rates[last / 4], rates[last / 2], rates[last - last / 4], static_cast<int>(rates.size()),
          busy / passed.count()};
}

}  // namespace

Rate measure_rate(int threads, double seconds, double amount,
                  const std::function<Sample()>& prepare) {
  LONGHAUL_CHECK(threads >= 1, "cannot measure ", threads, " threads");
  Rate sum;
  std::exception_ptr error;
  std::mutex mutex;
  std::barrier ready(threads);
  const auto measure = [&] {
    Sample sample;
    try {
      sample = prepare();
      sample();  // clock and caches settle
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
    ready.arrive_and_wait();
    if (error) return;
    const Rate own = sampled(sample, amount, seconds);
    const std::lock_guard lock(mutex);
    sum.lower += own.lower;
    sum.median += own.median;
    sum.upper += own.upper;
    sum.samples += own.samples;
    sum.cores += own.cores;
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i)
      others.push_back(start_thread<std::jthread>("measuring", measure));
    measure();
  }
  if (error) std::rethrow_exception(error);
  return sum;
}

double thread_cpu_seconds() {
  timespec now{};
  LONGHAUL_CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0,
                 "clock_gettime: ", std::strerror(errno));
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace longhaul::runtime

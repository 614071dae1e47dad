#include "runtime/peak.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/cores.h"
#include "runtime/error.h"
#include "runtime/stream.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

// Two units with a latency of 4 to 5 cycles: 12 independent sums keep both busy.
constexpr int kSums = 12;
constexpr std::int64_t kSteps = 20'000;  // of one sample, well under a millisecond

/// kSteps dependent FMAs in each of 12 registers. The empty asm makes every step happen.
__attribute__((target("avx2,fma"))) void sample_avx2() {
  __m256 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm256_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+x"(sum[i]));
    }
  }
}

__attribute__((target("avx512f"))) void sample_avx512() {
  __m512 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (std::int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sum[i] = _mm512_fmadd_ps(sum[i], a, b);
      asm volatile("" : "+v"(sum[i]));
    }
  }
}

struct Probe {
  void (*sample)();
  double flops;
};

Probe probe() {
  constexpr double kFmas = 2.0 * kSums * static_cast<double>(kSteps);
  if (__builtin_cpu_supports("avx512f")) return {sample_avx512, 16 * kFmas};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {sample_avx2, 8 * kFmas};
  fail(ExitCode::launch, "this CPU lacks AVX2 and FMA; Longhaul needs an x86-64-v3 processor");
}

/// Median rate of the calling thread.
double thread_rate(const Probe& with, double seconds) {
  std::vector<double> rates;
  with.sample();  // clock and caches settle
  const auto end = deadline_in(seconds);
  do {
    const double start = thread_cpu_seconds();
    with.sample();
    rates.push_back(with.flops / (thread_cpu_seconds() - start));
  } while (Clock::now() < end || rates.size() < 5);
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

}  // namespace

double thread_cpu_seconds() {
  timespec now{};
  LONGHAUL_CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0,
                 "clock_gettime: ", std::strerror(errno));
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double measure_fma_flops(int threads, double seconds) {
  LONGHAUL_CHECK(threads >= 1, "cannot measure ", threads, " threads");
  const Probe with = probe();
  if (threads == 1) return thread_rate(with, seconds);
  double sum = 0;
  std::mutex mutex;
  std::vector<std::jthread> team;
  for (int i = 0; i < threads; ++i) {
    team.push_back(start_thread<std::jthread>("measuring", [&] {
      const double rate = thread_rate(with, seconds);
      std::lock_guard lock(mutex);
      sum += rate;
    }));
  }
  team.clear();  // joins
  return sum;
}

PeakRate measure_peak(int threads, double seconds) {
  if (threads <= 0) threads = available_cores();
  return {measure_fma_flops(1, seconds), measure_fma_flops(threads, seconds), threads};
}

}  // namespace longhaul::runtime

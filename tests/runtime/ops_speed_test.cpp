// A guard against losing the dense operations' speed, not a benchmark: half of what they are for,
// relative to this machine's FMA rate or to its memory, measured beside each attempt with the same
// thread's CPU clock. Best of three: other load only slows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "runtime/cpu_level.h"
#include "runtime/ops/adamw.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/random.h"
#include "runtime/peak.h"
#include "tests/support/timing.h"

namespace longhaul::runtime::ops {
namespace {

/// Least CPU seconds of the stream's thread in what `work` enqueues, of three times.
double seconds_of(const Stream& stream, const std::function<void()>& work) {
  return test::least_of_attempts(0, [&](int) {
    double start = 0, end = 0;
    stream.host_task([&] { start = thread_cpu_seconds(); });
    work();
    stream.host_task([&] { end = thread_cpu_seconds(); });
    stream.synchronize(deadline_in(60));
    return end - start;
  });
}

/// Of [1024,768] x [768,1280], in units of the FMA rate: the least of both orientations' rates.
double matmul_rate(DType dtype, const Stream& stream) {
  constexpr std::int64_t m = 1024, k = 768, n = 1280;
  double least = 1e9;
  for (const bool transposes : {false, true}) {
    const auto matrix = [&](std::int64_t rows, std::int64_t cols) {
      Tensor tensor =
          transposes ? Tensor({cols, rows}, dtype, stream) : Tensor({rows, cols}, dtype, stream);
      fill_normal(tensor, 0, 1, {1, 1}, 0, stream);
      return tensor;
    };
    const Tensor a = matrix(m, k), b = matrix(k, n), c({m, n}, dtype, stream);
    const auto view = [&](const Tensor& tensor) {
      return transposes ? transposed(tensor) : ConstTensorView(tensor);
    };
    const double seconds =
        seconds_of(stream, [&] { matmul(view(a), view(b), c, Write::overwrite, stream); });
    const double flops = 2 * static_cast<double>(m * k * n) / seconds;
    least = std::min(least, flops / measure_fma_flops(1, 0.02));
  }
  return least;
}

TEST(OpsSpeed, MatmulKeepsItsShareOfTheFmaRate) {
  if (cpu_level() != best_cpu_level()) GTEST_SKIP() << "the FMA rate is that of the best level";
  const Stream stream = Stream::cpu("speed", 1);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    // Where the CPU multiplies bfloat16 itself: more than float32 can. Widened, it is as fast as
    // float32 but for its packing.
    const double bound = dtype == DType::float32                ? 0.45
                         : __builtin_cpu_supports("avx512bf16") ? 1.0
                                                                : 0.4;
    double best = 0;
    for (int attempt = 0; attempt < 3 && best < bound; ++attempt)
      best = std::max(best, matmul_rate(dtype, stream));
    std::printf("matmul %s, one thread: %.2f of the FMA rate\n", name(dtype), best);
    EXPECT_GE(best, bound) << name(dtype);
  }
}

TEST(OpsSpeed, AdamWKeepsToItsShareOfTheMemorysRate) {
  const Stream stream = Stream::cpu("speed", 1);
  constexpr std::int64_t n = 8 << 20;  // 32 MiB each: more than caches hold
  const auto flat = [&](float value) {
    Tensor tensor({n}, DType::float32, stream);
    fill(tensor, value, stream);
    return tensor;
  };
  const Tensor value = flat(1), first = flat(0), second = flat(0), gradient = flat(0.1f),
               sum = flat(0);
  const Tensor factor({1}, DType::float64, stream);
  fill(factor, 1, stream);
  // Bytes of the program over seconds: an update in place takes no line that it only writes.
  const double ratio =
      1 / test::least_of_attempts(1 / 0.8, [&](int) {
        const double triad = seconds_of(stream, [&] {
          stream.host_task([&] {
            const float *a = value.as<float>(), *b = gradient.as<float>();
            float* c = sum.as<float>();
            for (std::int64_t i = 0; i < n; ++i) c[i] = a[i] + 3 * b[i];
          });
        });
        const double update = seconds_of(stream, [&] {
          adamw({.lr = 1e-3, .step = 3}, gradient, factor, {value, first, second}, stream);
        });
        return (12 / triad) / (28 / update);
      });
  std::printf("adamw, one thread: %.2f of the triad's rate\n", ratio);
  EXPECT_GE(ratio, 0.8);
}

}  // namespace
}  // namespace longhaul::runtime::ops

#include "tests/support/kernel_bench.h"

#include <cmath>
#include <random>

#include "attention/block.h"
#include "runtime/peak.h"

namespace longhaul::attention {
namespace {

using runtime::Clock;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

constexpr double kDeadlineSeconds = 600;

Tensor random_tensor(std::initializer_list<std::int64_t> sizes, const Stream& stream,
                     std::mt19937& random) {
  Tensor tensor(sizes, DType::float32, stream);
  std::uniform_real_distribution<float> uniform(-1, 1);
  float* data = tensor.as<float>();
  for (std::int64_t i = 0; i < tensor.elements(); ++i) data[i] = uniform(random);
  return tensor;
}

double now(const KernelCase& which) {
  if (which.threads == 1) return runtime::thread_cpu_seconds();
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

/// Seconds of what `work` enqueues.
template <class Work>
double timed(const KernelCase& which, const Stream& stream, const Work& work) {
  double start = 0, end = 0;
  stream.host_task([&] { start = now(which); });
  work();
  stream.host_task([&] { end = now(which); });
  stream.synchronize(runtime::deadline_in(kDeadlineSeconds));
  return end - start;
}

}  // namespace

std::vector<KernelRates> measure_block_kernels(const KernelCase& which, int repeats) {
  const Stream stream = Stream::cpu("bench", which.threads);
  std::mt19937 random(1);
  const auto input = [&](std::int64_t heads) {
    Tensor wide = random_tensor({which.tokens, heads, which.dim}, stream, random);
    if (!which.bf16) return wide;
    Tensor narrow({which.tokens, heads, which.dim}, DType::bfloat16, stream);
    runtime::copy(wide, narrow, stream);
    return narrow;
  };
  const Tensor q = input(which.heads), k = input(which.kv_heads), v = input(which.kv_heads),
               dout = input(which.heads);
  const auto fp32 = [&](std::initializer_list<std::int64_t> sizes) {
    return Tensor(sizes, DType::float32, stream);
  };
  const Tensor out = fp32({which.tokens, which.heads, which.dim}),
               lse = fp32({which.tokens, which.heads, 2});
  const Tensor delta = fp32({which.tokens, which.heads}),
               dq = fp32({which.tokens, which.heads, which.dim});
  const Tensor dk = fp32({which.tokens, which.kv_heads, which.dim}),
               dv = fp32({which.tokens, which.kv_heads, which.dim});
  const Mask mask = which.causal ? Mask::causal(which.tokens) : Mask::full(which.tokens);
  Scoring scoring = which.scoring;
  scoring.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(which.dim)));
  const bool sigmoid = scoring.weighting == Weighting::sigmoid;
  const auto per_row = [&](const Tensor& tensor) {
    return sigmoid ? runtime::TensorView{} : tensor.view();
  };
  const double pair_flops =
      static_cast<double>(mask.area()) * static_cast<double>(which.heads * which.dim);

  std::vector<KernelRates> rates;
  for (int repeat = -1; repeat < repeats; ++repeat) {
    KernelRates rate;
    const double before = runtime::measure_fma_flops(which.threads, 0.02);
    rate.forward_seconds = timed(which, stream, [&] {
      block_forward(q, k, v, mask.slices(), scoring, out, per_row(lse), Mode::write, stream);
    });
    if (!sigmoid) block_delta(out, dout, delta, stream);
    rate.backward_seconds = timed(which, stream, [&] {
      block_backward({q, k, v, dout, per_row(lse), per_row(delta)}, mask.slices(), scoring, dq,
                     Mode::write, dk, dv, Mode::write, stream);
    });
    rate.peak_flops = (before + runtime::measure_fma_flops(which.threads, 0.02)) / 2;
    rate.forward_flops = 4 * pair_flops / rate.forward_seconds;
    rate.backward_flops = 10 * pair_flops / rate.backward_seconds;
    if (repeat >= 0) rates.push_back(rate);
  }
  return rates;
}

}  // namespace longhaul::attention

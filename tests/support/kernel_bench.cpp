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

double now(int threads) {
  if (threads == 1) return runtime::thread_cpu_seconds();
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

/// Seconds of what `work` enqueues.
template <class Work>
double timed(const Stream& stream, const Work& work) {
  double start = 0, end = 0;
  stream.host_task([&] { start = now(stream.threads()); });
  work();
  stream.host_task([&] { end = now(stream.threads()); });
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
    rate.forward_seconds = timed(stream, [&] {
      block_forward(q, k, v, mask.slices(), scoring, out, per_row(lse), Mode::write, stream);
    });
    if (!sigmoid) block_delta(out, dout, delta, stream);
    rate.backward_seconds = timed(stream, [&] {
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

std::vector<KernelRates> measure_linear_kernels(const LinearKernelCase& which, int repeats) {
  const Stream stream = Stream::cpu("bench", which.threads);
  std::mt19937 random(1);
  const LinearShape& s = which.shape;
  Recurrence how = which.recurrence;
  how.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.dim)));
  const bool delta = how.rule == StateRule::delta;
  const auto input = [&](std::initializer_list<std::int64_t> sizes, float factor, float offset) {
    Tensor tensor = random_tensor(sizes, stream, random);
    for (std::int64_t i = 0; i < tensor.elements(); ++i)
      tensor.as<float>()[i] = offset + factor * tensor.as<float>()[i];
    return tensor;
  };
  const float unit = static_cast<float>(std::sqrt(3.0 / static_cast<double>(s.dim)));
  const Tensor q = input({s.rows, s.key_heads, s.dim}, 1, 0),
               k = input({s.rows, s.key_heads, s.dim}, delta ? unit : 1, 0),
               v = input({s.rows, s.heads, s.value_dim}, 1, 0),
               dout = input({s.rows, s.heads, s.value_dim}, 1, 0),
               beta = input({s.rows, s.heads}, 0.5f, 0.5f);
  const bool constant = how.decay == Decay::head, vector = how.decay == Decay::vector;
  const auto gate_like = [&] {
    const std::int64_t rows = constant ? 1 : s.rows;
    return vector ? Tensor({rows, s.heads, s.dim}, DType::float32, stream)
                  : Tensor({rows, s.heads}, DType::float32, stream);
  };
  const Tensor log_decay = gate_like(), dlog_decay = gate_like();
  std::uniform_real_distribution<float> gates(-0.1f, 0);
  for (std::int64_t i = 0; i < log_decay.elements(); ++i) log_decay.as<float>()[i] = gates(random);
  std::fill_n(dlog_decay.as<float>(), dlog_decay.elements(), 0.0f);
  const auto like = [&](const Tensor& tensor) {
    return Tensor(tensor.view().sizes(), DType::float32, stream);
  };
  const Tensor out = like(v), dq = like(q), dk = like(k), dv = like(v), dbeta = like(beta);
  const auto gate_view = [&](const Tensor& tensor) {
    return how.decay == Decay::none ? runtime::TensorView{} : tensor.view();
  };
  const auto beta_view = [&](const Tensor& tensor) {
    return delta ? tensor.view() : runtime::TensorView{};
  };
  const auto plan = [&](LinearPass pass) {
    return plan_linear(pass, s, how, {}, place_of(stream));
  };
  const auto sweep = plan(LinearPass::sweep), backward = plan(LinearPass::sweep_backward);
  const LinearInputs inputs{q, k, v, gate_view(log_decay), beta_view(beta)};

  constexpr double kChunk = 64;
  const auto d = static_cast<double>(s.dim), e = static_cast<double>(s.value_dim),
             tokens = static_cast<double>(s.rows * s.heads);
  const double forward_flops = delta ? 2 * kChunk * (2 * d + 2 * e) + 6 * d * e
                                     : 2 * kChunk * (d + e) + 4 * d * e,
               backward_flops = delta ? kChunk * (12 * d + 10 * e) + 14 * d * e
                                      : 2 * kChunk * (3 * d + 2 * e) + 10 * d * e;
  std::vector<KernelRates> rates;
  for (int repeat = -1; repeat < repeats; ++repeat) {
    KernelRates rate;
    const double before = runtime::measure_fma_flops(which.threads, 0.02);
    rate.forward_seconds = timed(stream, [&] {
      run_once(sweep, SweepTensors{inputs, {}, out, {}}, stream);
    });
    rate.backward_seconds = timed(stream, [&] {
      run_once(backward,
               SweepBackwardTensors{
                   inputs, dout, {}, {}, dq, dk, dv, gate_view(dlog_decay), beta_view(dbeta), {}},
               stream);
    });
    rate.peak_flops = (before + runtime::measure_fma_flops(which.threads, 0.02)) / 2;
    rate.forward_flops = tokens * forward_flops / rate.forward_seconds;
    rate.backward_flops = tokens * backward_flops / rate.backward_seconds;
    if (repeat >= 0) rates.push_back(rate);
  }
  return rates;
}

}  // namespace longhaul::attention

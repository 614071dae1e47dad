// The gates of recurrences on the CPU: loops that the compiler vectorises for each target.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/gates_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::exponential;
using runtime::ops::detail::kParallelElements;
using runtime::ops::detail::log_of_one_plus;
using runtime::ops::detail::to_float;
using runtime::ops::detail::with_activation;

/// log(1 + e^x), without overflow.
float softplus(float x) {
  return (x > 0 ? x : 0.0f) + log_of_one_plus(exponential(x > 0 ? -x : x));
}
float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/// What of a gate all columns have in common.
struct GateNumbers {
  float min_step, max_step, lower_bound, per_divisor;

  explicit GateNumbers(const DecayGate& gate)
      : min_step(static_cast<float>(gate.min_step)),
        max_step(static_cast<float>(gate.max_step)),
        lower_bound(static_cast<float>(gate.lower_bound)),
        per_divisor(static_cast<float>(1 / gate.divisor)) {}
};

struct GateGradients {
  float u, a_log;
};

/// The log decay as a function of u = x + bias; rate = exp(A_log).
template <DecayForm form>
struct Decaying : GateNumbers {
  using GateNumbers::GateNumbers;

  float step(float u) const {
    const float plain = softplus(u), raised = plain < min_step ? min_step : plain;
    return raised > max_step ? max_step : raised;
  }
  float log_decay(float u, float rate) const {
    if constexpr (form == DecayForm::softplus) return -rate * step(u);
    if constexpr (form == DecayForm::bounded) return lower_bound * sigmoid(rate * u);
    if constexpr (form == DecayForm::log_sigmoid) return -softplus(-u) * per_divisor;
  }
  /// From those of the log decay and of the step.
  GateGradients backward(float u, float rate, float decay, float of_step) const {
    if constexpr (form == DecayForm::softplus) {
      const float plain = softplus(u), slope = (of_step - rate * decay) * sigmoid(u);
      const bool clamped = plain < min_step || plain > max_step;
      return {clamped ? 0.0f : slope, -rate * step(u) * decay};
    }
    if constexpr (form == DecayForm::bounded) {
      const float s = sigmoid(rate * u), slope = lower_bound * s * (1.0f - s) * rate * decay;
      return {slope, slope * u};
    }
    if constexpr (form == DecayForm::log_sigmoid) return {decay * sigmoid(-u) * per_divisor, 0};
  }
};

/// Calls body.template operator()<form>().
template <class Body>
void with_form(DecayForm form, const Body& body) {
  switch (form) {
    case DecayForm::softplus:
      return body.template operator()<DecayForm::softplus>();
    case DecayForm::bounded:
      return body.template operator()<DecayForm::bounded>();
    case DecayForm::log_sigmoid:
      return body.template operator()<DecayForm::log_sigmoid>();
  }
}

const float* floats_or_null(const ConstTensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<float>();
}
float* floats_or_null(const TensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<float>();
}

/// exp(A_log) of each column's head; 1 without A_log.
std::vector<float> rates_of(const float* a_log, std::int64_t heads, std::int64_t width) {
  std::vector<float> rates;
  for (std::int64_t head = 0; head < heads; ++head) {
    const double rate = a_log == nullptr ? 1 : std::exp(static_cast<double>(a_log[head]));
    rates.insert(rates.end(), static_cast<std::size_t>(width), static_cast<float>(rate));
  }
  return rates;
}

constexpr std::int64_t kColumns = 64;  // whose gradients one thread sums

}  // namespace

void run_decay_gate(const DecayGate& gate, ConstTensorView x, const DecayParameters& parameters,
                    TensorView log_decay, TensorView time_step, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), width = x.size(2),
                     columns = heads * width;
  with_activation("decay_gate", x.dtype(), [&]<class T>() {
    with_form(gate.form, [&]<DecayForm form>() {
      stream.cpu_task([=, in = x.as<T>(), a_log = floats_or_null(parameters.a_log),
                       bias = parameters.bias.as<float>(), decays = log_decay.as<float>(),
                       steps = floats_or_null(time_step)] {
        const std::vector<float> rates = rates_of(a_log, heads, width);
        const float* rate = rates.data();
        const Decaying<form> decaying(gate);
#pragma omp parallel for if (rows * columns >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          const T* xs = in + row * columns;
          float* out = decays + row * columns;
#pragma omp simd
          for (std::int64_t c = 0; c < columns; ++c)
            out[c] = decaying.log_decay(to_float(xs[c]) + bias[c], rate[c]);
          if (steps == nullptr) continue;
#pragma omp simd
          for (std::int64_t c = 0; c < columns; ++c)
            steps[row * columns + c] = decaying.step(to_float(xs[c]) + bias[c]);
        }
      });
    });
  });
}

namespace {

/// Columns [begin, end) of all rows; their parts of A_log's gradient to a_sums.
template <DecayForm form, class T, class To>
struct BackwardColumns {
  Decaying<form> decaying;
  std::int64_t rows, columns;
  const T* x;
  const float *rate, *bias, *decays, *steps;
  To* dx;
  float* dbias;

  void operator()(std::int64_t begin, std::int64_t end, double* a_sums) const {
    const std::int64_t count = end - begin;
    std::array<double, kColumns> bias_sums{};
    std::array<float, kColumns> of_u{}, of_a_log{};
    const std::array<float, kColumns> no_steps{};
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t at = row * columns + begin;
      const float* step = steps == nullptr ? no_steps.data() : steps + at;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        const GateGradients g = decaying.backward(to_float(x[at + i]) + bias[begin + i],
                                                  rate[begin + i], decays[at + i], step[i]);
        of_u[static_cast<std::size_t>(i)] = g.u;
        of_a_log[static_cast<std::size_t>(i)] = g.a_log;
      }
      for (std::int64_t i = 0; i < count; ++i) {
        const auto c = static_cast<std::size_t>(i);
        dx[at + i] = To(of_u[c]);
        bias_sums[c] += static_cast<double>(of_u[c]);
        a_sums[begin + i] += static_cast<double>(of_a_log[c]);
      }
    }
    for (std::int64_t c = begin; c < end; ++c)
      dbias[c] += static_cast<float>(bias_sums[static_cast<std::size_t>(c - begin)]);
  }
};

}  // namespace

void run_decay_gate_backward(const DecayGate& gate, ConstTensorView x,
                             const DecayParameters& parameters, ConstTensorView dlog_decay,
                             ConstTensorView dtime_step, const DecayGateGradients& gradients,
                             const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), width = x.size(2),
                     columns = heads * width;
  const auto run = [&]<DecayForm form, class T, class To>() {
    BackwardColumns<form, T, To> work{Decaying<form>(gate),
                                      rows,
                                      columns,
                                      x.as<T>(),
                                      nullptr,
                                      parameters.bias.as<float>(),
                                      dlog_decay.as<float>(),
                                      floats_or_null(dtime_step),
                                      gradients.dx.as<To>(),
                                      gradients.dbias.as<float>()};
    stream.cpu_task([=, a_log = floats_or_null(parameters.a_log),
                     da_log = floats_or_null(gradients.da_log)]() mutable {
      const std::vector<float> rates = rates_of(a_log, heads, width);
      work.rate = rates.data();
      std::vector<double> a_sums(rates.size());
#pragma omp parallel for if (rows * columns >= kParallelElements)
      for (std::int64_t begin = 0; begin < columns; begin += kColumns)
        work(begin, std::min(columns, begin + kColumns), a_sums.data());
      for (std::int64_t head = 0; head < heads && da_log != nullptr; ++head) {
        double sum = 0;
        for (std::int64_t c = head * width; c < (head + 1) * width; ++c)
          sum += a_sums[static_cast<std::size_t>(c)];
        da_log[head] += static_cast<float>(sum);
      }
    });
  };
  with_activation("decay_gate_backward", x.dtype(), [&]<class T>() {
    with_activation("decay_gate_backward", gradients.dx.dtype(), [&]<class To>() {
      with_form(gate.form, [&]<DecayForm form>() { run.template operator()<form, T, To>(); });
    });
  });
}

void run_beta_gate(ConstTensorView x, double factor, TensorView beta, const Stream& stream) {
  with_activation("beta_gate", x.dtype(), [&]<class T>() {
    stream.cpu_task([n = x.elements(), scale = static_cast<float>(factor), in = x.as<T>(),
                     out = beta.as<float>()] {
#pragma omp parallel for simd if (parallel : n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i) out[i] = scale * sigmoid(to_float(in[i]));
    });
  });
}

void run_beta_gate_backward(ConstTensorView x, double factor, ConstTensorView dbeta, TensorView dx,
                            const Stream& stream) {
  with_activation("beta_gate_backward", x.dtype(), [&]<class T>() {
    with_activation("beta_gate_backward", dx.dtype(), [&]<class To>() {
      stream.cpu_task([n = x.elements(), scale = static_cast<float>(factor), in = x.as<T>(),
                       slopes = dbeta.as<float>(), out = dx.as<To>()] {
#pragma omp parallel for simd if (parallel : n >= kParallelElements)
        for (std::int64_t i = 0; i < n; ++i) {
          const float s = sigmoid(to_float(in[i]));
          out[i] = To(slopes[i] * scale * s * (1.0f - s));
        }
      });
    });
  });
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention::detail {

HWY_EXPORT(run_decay_gate);
HWY_EXPORT(run_decay_gate_backward);
HWY_EXPORT(run_beta_gate);
HWY_EXPORT(run_beta_gate_backward);

void cpu_decay_gate(const DecayGate& gate, runtime::ConstTensorView x,
                    const DecayParameters& parameters, runtime::TensorView log_decay,
                    runtime::TensorView time_step, const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_decay_gate)(gate, x, parameters, log_decay, time_step, stream);
}

void cpu_decay_gate_backward(const DecayGate& gate, runtime::ConstTensorView x,
                             const DecayParameters& parameters, runtime::ConstTensorView dlog_decay,
                             runtime::ConstTensorView dtime_step,
                             const DecayGateGradients& gradients, const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_decay_gate_backward)
  (gate, x, parameters, dlog_decay, dtime_step, gradients, stream);
}

void cpu_beta_gate(runtime::ConstTensorView x, double factor, runtime::TensorView beta,
                   const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_beta_gate)(x, factor, beta, stream);
}

void cpu_beta_gate_backward(runtime::ConstTensorView x, double factor,
                            runtime::ConstTensorView dbeta, runtime::TensorView dx,
                            const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_beta_gate_backward)(x, factor, dbeta, dx, stream);
}

}  // namespace longhaul::attention::detail
#endif  // HWY_ONCE

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"

namespace longhaul::attention::detail {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::kParallelElements;
using runtime::ops::detail::to_float;
using runtime::ops::detail::with_activation;

/// log(1 + e^x), without overflow.
float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }
float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

/// A head's log decay as a function of u = x + bias.
struct HeadDecay {
  DecayForm form;
  float rate;  ///< exp(A_log)
  float min_step, max_step, lower_bound, per_divisor;

  HeadDecay(const DecayGate& gate, const float* a_log, std::int64_t head)
      : form(gate.form),
        rate(a_log == nullptr ? 1.0f
                              : static_cast<float>(std::exp(static_cast<double>(a_log[head])))),
        min_step(static_cast<float>(gate.min_step)),
        max_step(static_cast<float>(gate.max_step)),
        lower_bound(static_cast<float>(gate.lower_bound)),
        per_divisor(static_cast<float>(1 / gate.divisor)) {}

  float step(float u) const { return std::clamp(softplus(u), min_step, max_step); }
  float operator()(float u) const {
    switch (form) {
      case DecayForm::softplus:
        return -rate * step(u);
      case DecayForm::bounded:
        return lower_bound * sigmoid(rate * u);
      case DecayForm::log_sigmoid:
        break;
    }
    return -softplus(-u) * per_divisor;
  }

  struct Gradients {
    float u, a_log;
  };
  /// From those of the log decay and of the step.
  Gradients backward(float u, float decay, float of_step) const {
    switch (form) {
      case DecayForm::softplus: {
        const float plain = softplus(u);
        const bool clamped = plain < min_step || plain > max_step;
        const float dstep = of_step - rate * decay;
        return {clamped ? 0.0f : dstep * sigmoid(u), -rate * step(u) * decay};
      }
      case DecayForm::bounded: {
        const float s = sigmoid(rate * u), slope = lower_bound * s * (1.0f - s) * rate * decay;
        return {slope, slope * u};
      }
      case DecayForm::log_sigmoid:
        break;
    }
    return {decay * sigmoid(-u) * per_divisor, 0};
  }
};

const float* floats_or_null(const ConstTensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<float>();
}
float* floats_or_null(const TensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<float>();
}

/// Heads whose gradients one thread sums: about a cache line of them.
std::int64_t heads_of_block(std::int64_t width) {
  return std::max<std::int64_t>(1, 16 / std::max<std::int64_t>(1, width));
}

}  // namespace

void cpu_decay_gate(const DecayGate& gate, ConstTensorView x, const DecayParameters& parameters,
                    TensorView log_decay, TensorView time_step, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), width = x.size(2);
  with_activation("decay_gate", x.dtype(), [&]<class T>() {
    stream.cpu_task([=, in = x.as<T>(), a_log = floats_or_null(parameters.a_log),
                     bias = parameters.bias.as<float>(), decays = log_decay.as<float>(),
                     steps = floats_or_null(time_step)] {
      std::vector<HeadDecay> of_head;
      for (std::int64_t head = 0; head < heads; ++head) of_head.emplace_back(gate, a_log, head);
#pragma omp parallel for if (rows * heads * width >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          const HeadDecay& decay = of_head[static_cast<std::size_t>(head)];
          for (std::int64_t c = head * width; c < (head + 1) * width; ++c) {
            const std::int64_t at = row * heads * width + c;
            const float u = to_float(in[at]) + bias[c];
            decays[at] = decay(u);
            if (steps != nullptr) steps[at] = decay.step(u);
          }
        }
      }
    });
  });
}

void cpu_decay_gate_backward(const DecayGate& gate, ConstTensorView x,
                             const DecayParameters& parameters, ConstTensorView dlog_decay,
                             ConstTensorView dtime_step, const DecayGateGradients& gradients,
                             const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), width = x.size(2);
  const std::int64_t block = heads_of_block(width);
  with_activation("decay_gate_backward", x.dtype(), [&]<class T>() {
    with_activation("decay_gate_backward", gradients.dx.dtype(), [&]<class To>() {
      stream.cpu_task([=, in = x.as<T>(), a_log = floats_or_null(parameters.a_log),
                       bias = parameters.bias.as<float>(), decays = dlog_decay.as<float>(),
                       steps = floats_or_null(dtime_step), dx = gradients.dx.as<To>(),
                       da_log = floats_or_null(gradients.da_log),
                       dbias = gradients.dbias.as<float>()] {
#pragma omp parallel for if (rows * heads * width >= kParallelElements)
        for (std::int64_t first = 0; first < heads; first += block) {
          const std::int64_t end = std::min(heads, first + block);
          std::vector<HeadDecay> of_head;
          for (std::int64_t head = first; head < end; ++head)
            of_head.emplace_back(gate, a_log, head);
          std::vector<double> bias_sums(static_cast<std::size_t>((end - first) * width)),
              a_sums(static_cast<std::size_t>(end - first));
          for (std::int64_t row = 0; row < rows; ++row) {
            for (std::int64_t head = first; head < end; ++head) {
              const auto h = static_cast<std::size_t>(head - first);
              for (std::int64_t c = head * width; c < (head + 1) * width; ++c) {
                const std::int64_t at = row * heads * width + c;
                const auto g = of_head[h].backward(to_float(in[at]) + bias[c], decays[at],
                                                   steps == nullptr ? 0.0f : steps[at]);
                dx[at] = To(g.u);
                bias_sums[static_cast<std::size_t>(c - first * width)] += static_cast<double>(g.u);
                a_sums[h] += static_cast<double>(g.a_log);
              }
            }
          }
          for (std::int64_t c = first * width; c < end * width; ++c)
            dbias[c] += static_cast<float>(bias_sums[static_cast<std::size_t>(c - first * width)]);
          for (std::int64_t head = first; head < end && da_log != nullptr; ++head)
            da_log[head] += static_cast<float>(a_sums[static_cast<std::size_t>(head - first)]);
        }
      });
    });
  });
}

void cpu_beta_gate(ConstTensorView x, double factor, TensorView beta, const Stream& stream) {
  with_activation("beta_gate", x.dtype(), [&]<class T>() {
    stream.cpu_task([n = x.elements(), scale = static_cast<float>(factor), in = x.as<T>(),
                     out = beta.as<float>()] {
#pragma omp parallel for if (n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i) out[i] = scale * sigmoid(to_float(in[i]));
    });
  });
}

void cpu_beta_gate_backward(ConstTensorView x, double factor, ConstTensorView dbeta, TensorView dx,
                            const Stream& stream) {
  with_activation("beta_gate_backward", x.dtype(), [&]<class T>() {
    with_activation("beta_gate_backward", dx.dtype(), [&]<class To>() {
      stream.cpu_task([n = x.elements(), scale = static_cast<float>(factor), in = x.as<T>(),
                       slopes = dbeta.as<float>(), out = dx.as<To>()] {
#pragma omp parallel for if (n >= kParallelElements)
        for (std::int64_t i = 0; i < n; ++i) {
          const float s = sigmoid(to_float(in[i]));
          out[i] = To(slopes[i] * scale * s * (1.0f - s));
        }
      });
    });
  });
}

}  // namespace longhaul::attention::detail

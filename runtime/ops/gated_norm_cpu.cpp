#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kColumns = 64;  // of the weight gradient, summed by one thread

/// One of the formulae, known to the compiler; T is the gate's dtype.
template <GateActivation activation, bool first, class T>
struct Form {
  static Slope gate(const T* gates, std::int64_t i) {
    if constexpr (activation == GateActivation::none) {
      return {1.0f, 0.0f};
    } else {
      const float z = to_float(gates[i]), e = exponential(-z);
      return activation == GateActivation::silu ? silu_slope(z, e) : sigmoid_slope(e);
    }
  }
  /// x times what the gate gives before the norm.
  static float before(float x, const Slope& gate) { return first ? x * gate.value : x; }
  /// The same behind it.
  static float after(float y, const Slope& gate) { return first ? y : y * gate.value; }
  /// Of the gate; h = before(x), dh its gradient, y = norm(h).
  static float gradient(float x, float dh, float y, float dy, const Slope& gate) {
    return (first ? dh * x : dy * y) * gate.slope;
  }

  static float inverse_rms(const float* x, const T* gates, double eps, std::int64_t group) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < group; ++i) {
      const auto h = static_cast<double>(before(x[i], gate(gates, i)));
      sum += h * h;
    }
    return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(group) + eps));
  }

  static void norm_group(const float* x, const T* gates, const float* weight, double eps, T* y,
                         std::int64_t group) {
    const float inverse = inverse_rms(x, gates, eps, group);
#pragma omp simd
    for (std::int64_t i = 0; i < group; ++i) {
      const Slope g = gate(gates, i);
      put(y[i], after(normed(before(x[i], g), inverse, weight[i]), g));
    }
  }

  static void backward_group(const float* x, const T* gates, const float* weight, float inverse,
                             const float* dy, T* dx, T* dgate, std::int64_t group) {
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t i = 0; i < group; ++i) {
      const Slope g = gate(gates, i);
      dot +=
          static_cast<double>(weight[i] * after(dy[i], g)) * static_cast<double>(before(x[i], g));
    }
    const double square = static_cast<double>(inverse) * static_cast<double>(inverse);
    const auto pull = static_cast<float>(dot * square / static_cast<double>(group));
#pragma omp simd
    for (std::int64_t i = 0; i < group; ++i) {
      const Slope g = gate(gates, i);
      const float h = before(x[i], g);
      const float dh = norm_gradient(h, inverse, weight[i], after(dy[i], g), pull);
      if constexpr (activation != GateActivation::none)
        put(dgate[i], gradient(x[i], dh, normed(h, inverse, weight[i]), dy[i], g));
      put(dx[i], before(dh, g));
    }
  }

  /// sums[c] += dy times the normed value without its weight, columns [begin, end) of a row.
  static void add_columns(const float* x, const T* gates, const float* inv_rms, const float* dy,
                          std::int64_t begin, std::int64_t end, std::int64_t group, double* sums) {
#pragma omp simd
    for (std::int64_t c = begin; c < end; ++c) {
      const Slope g = gate(gates, c);
      sums[c - begin] +=
          static_cast<double>(after(dy[c], g) * (before(x[c], g) * inv_rms[c / group]));
    }
  }
};

/// Calls body.template operator()<Form>().
template <class T, class Body>
void with_form(const GatedNorm& norm, const Body& body) {
  using enum GateActivation;
  const bool first = norm.gate_first;
  if (norm.activation == none) return body.template operator()<Form<none, false, T>>();
  if (norm.activation == silu && first) return body.template operator()<Form<silu, true, T>>();
  if (norm.activation == silu) return body.template operator()<Form<silu, false, T>>();
  if (first) return body.template operator()<Form<sigmoid, true, T>>();
  body.template operator()<Form<sigmoid, false, T>>();
}

template <class T>
const T* data_of(const ConstTensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<T>();
}
template <class T>
T* data_of(const TensorView& view) {
  return view.data() == nullptr ? nullptr : view.as<T>();
}
/// `i` elements on; null stays null.
template <class T>
T* on(T* data, std::int64_t i) {
  return data == nullptr ? nullptr : data + i;
}

}  // namespace

void cpu_gated_norm(const GatedNorm& norm, ConstTensorView x, ConstTensorView gate,
                    ConstTensorView weight, TensorView y, const Stream& stream) {
  const std::int64_t groups = y.elements() / norm.group, group = norm.group,
                     period = weight.size(0);
  with_activation("gated_norm", y.dtype(), [&]<class T>() {
    with_form<T>(norm, [&]<class F>() {
      stream.cpu_task([=, eps = norm.eps, in = x.as<float>(), gates = data_of<T>(gate),
                       weights = weight.as<float>(), out = y.as<T>()] {
#pragma omp parallel for if (groups * group >= kParallelElements)
        for (std::int64_t i = 0; i < groups; ++i) {
          const std::int64_t at = i * group;  // rows are multiples of the period
          F::norm_group(in + at, on(gates, at), weights + at % period, eps, out + at, group);
        }
      });
    });
  });
}

void cpu_gated_norm_backward(const GatedNorm& norm, const GatedNormBackwardInputs& inputs,
                             TensorView dx, TensorView dgate, TensorView dweight,
                             const Stream& stream) {
  const std::int64_t rows = dx.size(0), width = dx.size(1), group = norm.group,
                     period = dweight.size(0);
  const Tensor inv_rms({rows * width / group}, DType::float32, stream);
  with_activation("gated_norm_backward", dx.dtype(), [&]<class T>() {
    with_form<T>(norm, [&]<class F>() {
      stream.cpu_task([=, x = inputs.x.as<float>(), gates = data_of<T>(inputs.gate),
                       weights = inputs.weight.as<float>(), inverse = inv_rms.as<float>(),
                       eps = norm.eps, dy = inputs.dy.as<float>(), to_x = dx.as<T>(),
                       to_gate = data_of<T>(dgate), to_weight = dweight.as<float>()] {
#pragma omp parallel for if (rows * width >= kParallelElements)
        for (std::int64_t i = 0; i < rows * width / group; ++i) {
          const std::int64_t at = i * group;
          inverse[i] = F::inverse_rms(x + at, on(gates, at), eps, group);
          F::backward_group(x + at, on(gates, at), weights + at % period, inverse[i], dy + at,
                            to_x + at, on(to_gate, at), group);
        }
#pragma omp parallel for if (rows * width >= kParallelElements)
        for (std::int64_t begin = 0; begin < period; begin += kColumns) {
          const std::int64_t end = std::min(period, begin + kColumns);
          std::array<double, kColumns> sums{};
          for (std::int64_t row = 0; row < rows; ++row) {
            for (std::int64_t at = row * width; at < (row + 1) * width; at += period)
              F::add_columns(x + at, on(gates, at), inverse + at / group, dy + at, begin, end,
                             group, sums.data());
          }
          for (std::int64_t c = begin; c < end; ++c)
            to_weight[c] += static_cast<float>(sums[static_cast<std::size_t>(c - begin)]);
        }
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

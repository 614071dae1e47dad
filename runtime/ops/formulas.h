#pragma once
// Private to runtime/ops: what is computed of one element, in fp32. Host and device share it.

#include <cmath>

#include "runtime/host_device.h"
#include "runtime/ops/adamw.h"
#include "runtime/ops/glu.h"

namespace longhaul::runtime::ops::detail {

LONGHAUL_HOST_DEVICE inline float normed(float x, float inv_rms, float weight) {
  return x * inv_rms * weight;
}
/// dx of the norm; pull = inv_rms^2 * mean(weight dy x) of the row.
LONGHAUL_HOST_DEVICE inline float norm_gradient(float x, float inv_rms, float weight, float dy,
                                                float pull) {
  return inv_rms * (weight * dy - x * pull);
}

struct Pair {
  float first, second;
};
/// (first, second) turned by the angle.
LONGHAUL_HOST_DEVICE inline Pair turned(Pair pair, float cosine, float sine) {
  return {pair.first * cosine - pair.second * sine, pair.second * cosine + pair.first * sine};
}

/// Of what e = e^-x belongs to.
LONGHAUL_HOST_DEVICE inline float sigmoid_of(float e) { return 1.0f / (1.0f + e); }
/// Gradients of x and of the gate of x * sigmoid(gate); e = e^-gate.
LONGHAUL_HOST_DEVICE inline Pair sigmoid_gate_gradients(float x, float e, float dy) {
  const float sigmoid = sigmoid_of(e);
  return {dy * sigmoid, dy * x * sigmoid * (1.0f - sigmoid)};
}

/// max(x, 0)^2; NaN stays NaN.
LONGHAUL_HOST_DEVICE inline float relu_squared(float x) { return x < 0 ? 0.0f : x * x; }
LONGHAUL_HOST_DEVICE inline float relu_squared_gradient(float x, float dy) {
  return x < 0 ? 0.0f : 2.0f * x * dy;
}

/// A gate g becomes g * sigmoid(argument). g / (1 + e^-g):
struct SiluGate {
  LONGHAUL_HOST_DEVICE static float argument(float gate) { return gate; }
  /// The argument's derivative.
  LONGHAUL_HOST_DEVICE static float slope(float) { return 1.0f; }
};
/// g/2 (1 + tanh(z)) = g sigmoid(2 z), z = sqrt(2/pi) (g + 0.044715 g^3).
struct GeluGate {
  LONGHAUL_HOST_DEVICE static float argument(float gate) {
    const float g = within(gate);
    return g * (kLinear + kCubic * g * g);
  }
  LONGHAUL_HOST_DEVICE static float slope(float gate) {
    const float g = within(gate);
    return kLinear + 3.0f * kCubic * g * g;
  }

 private:
  static constexpr float kLinear = 1.5957691216057308f, kCubic = 0.044715f * kLinear;
  /// Beyond it the sigmoid is 0 or 1 in fp32, and nothing overflows before it. NaN stays NaN.
  LONGHAUL_HOST_DEVICE static float within(float gate) {
    gate = gate < -16.0f ? -16.0f : gate;
    return gate > 16.0f ? 16.0f : gate;
  }
};

/// f(gate) * up; e = e^-argument.
LONGHAUL_HOST_DEVICE inline float gated(float gate, float up, float e) {
  const float sigmoid = 1.0f / (1.0f + e);  // the gradients take it too: one division serves all
  return gate * sigmoid * up;
}
/// Gradients of gate and up.
template <class Gate>
LONGHAUL_HOST_DEVICE Pair gated_gradients(float gate, float up, float e, float dy) {
  const float sigmoid = 1.0f / (1.0f + e);
  return {dy * up * sigmoid * (1.0f + gate * Gate::slope(gate) * (1.0f - sigmoid)),
          dy * gate * sigmoid};
}
/// Calls body.template operator()<Gate>() with the kind's.
template <class Body>
void with_gate(Glu kind, const Body& body) {
  switch (kind) {
    case Glu::swiglu:
      return body.template operator()<SiluGate>();
    case Glu::geglu:
      return body.template operator()<GeluGate>();
  }
}

/// The derivative of c tanh(x / c), from what it gives; inverse = 1 / c.
LONGHAUL_HOST_DEVICE inline float softcap_slope(float capped, float inverse) {
  const float t = capped * inverse;
  return (1.0f - t) * (1.0f + t);
}

/// A function of one number and its derivative.
struct Slope {
  float value, slope;
};
/// 1 / (1 + e^-x); e = e^-x.
LONGHAUL_HOST_DEVICE inline Slope sigmoid_slope(float e) {
  const float sigmoid = 1.0f / (1.0f + e);
  return {sigmoid, sigmoid * (1.0f - sigmoid)};
}
/// x / (1 + e^-x); e = e^-x.
LONGHAUL_HOST_DEVICE inline Slope silu_slope(float x, float e) {
  const float sigmoid = 1.0f / (1.0f + e);
  return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
}
/// elu(x) + 1: x + 1 above 0, e^x below; e = e^x.
LONGHAUL_HOST_DEVICE inline Slope elu1_slope(float x, float e) {
  return x > 0 ? Slope{x + 1.0f, 1.0f} : Slope{e, e};
}

/// AdamWFactors as the update of an element takes them.
struct AdamWUpdate {
  float beta1, beta2, rest1, rest2, keep, rate, root, eps;

  explicit AdamWUpdate(const AdamWFactors& f)
      : beta1(static_cast<float>(f.beta1)),
        beta2(static_cast<float>(f.beta2)),
        rest1(static_cast<float>(1 - f.beta1)),
        rest2(static_cast<float>(1 - f.beta2)),
        keep(static_cast<float>(1 - f.lr * f.weight_decay)),
        rate(static_cast<float>(f.lr / (1 - std::pow(f.beta1, static_cast<double>(f.step))))),
        root(static_cast<float>(1 / std::sqrt(1 - std::pow(f.beta2, static_cast<double>(f.step))))),
        eps(static_cast<float>(f.eps)) {}

  /// `slope` is the clipped gradient.
  LONGHAUL_HOST_DEVICE void apply(float slope, float& value, float& first, float& second) const {
    first = beta1 * first + rest1 * slope;
    second = beta2 * second + rest2 * slope * slope;
    value = value * keep - rate * first / (sqrtf(second) * root + eps);
  }
};

}  // namespace longhaul::runtime::ops::detail

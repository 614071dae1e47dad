#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  T sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
T dot_magnitude(const T* a, const T* b, std::int64_t n) {
  T sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::abs(a[i] * b[i]);
  return sum;
}

/// One query head of one row at a time, in the order of the formulae.
template <class T>
class Reference {
 public:
  /// slices[h] are query head h's.
  Reference(const ReferenceInputs<T>& inputs, std::vector<std::span<const Slice>> slices)
      : in_(inputs), slices_(std::move(slices)) {
    LONGHAUL_CHECK(static_cast<std::int64_t>(slices_.size()) == in_.heads, slices_.size(),
                   " lists of slices for ", in_.heads, " heads");
    LONGHAUL_CHECK(in_.sinks.empty() || (static_cast<std::int64_t>(in_.sinks.size()) == in_.heads &&
                                         in_.weighting == Weighting::softmax),
                   in_.sinks.size(), " sinks for ", in_.heads, " heads");
    const auto size = [](std::int64_t rows, std::int64_t heads, std::int64_t dim) {
      return static_cast<std::size_t>(rows * heads * dim);
    };
    LONGHAUL_CHECK(in_.heads == 0 || (in_.kv_heads > 0 && in_.heads % in_.kv_heads == 0), in_.heads,
                   " heads over ", in_.kv_heads);
    LONGHAUL_CHECK(in_.q.size() == size(in_.q_rows, in_.heads, in_.dim), "q has ", in_.q.size(),
                   " elements");
    LONGHAUL_CHECK(in_.k.size() == size(in_.k_rows, in_.kv_heads, in_.dim), "k has ", in_.k.size(),
                   " elements");
    LONGHAUL_CHECK(in_.v.size() == size(in_.k_rows, in_.kv_heads, in_.value_dim), "v has ",
                   in_.v.size(), " elements");
    result_.out.assign(size(in_.q_rows, in_.heads, in_.value_dim), T{0});
    if (in_.weighting == Weighting::softmax)
      result_.lse.assign(size(in_.q_rows, in_.heads, 1), -std::numeric_limits<T>::infinity());
    if (in_.dout.empty()) return;
    LONGHAUL_CHECK(in_.dout.size() == result_.out.size(), "dout has ", in_.dout.size(),
                   " elements");
    result_.dq.assign(in_.q.size(), T{0});
    result_.dk.assign(in_.k.size(), T{0});
    result_.dv.assign(in_.v.size(), T{0});
    result_.dsinks.assign(in_.sinks.size(), T{0});
    if (!in_.magnitudes) return;
    result_.dq_magnitude = result_.dq;
    result_.dk_magnitude = result_.dk;
    result_.dv_magnitude = result_.dv;
    result_.dsinks_magnitude = result_.dsinks;
  }

  ReferenceResult<T> run() {
    // Gradients of a key/value head come from its own query heads only.
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t kv_head = 0; kv_head < in_.kv_heads; ++kv_head) {
      const std::int64_t group = in_.heads / in_.kv_heads;
      std::vector<std::int64_t> keys;
      std::vector<Weight> weights;
      for (std::int64_t i = 0; i < in_.q_rows; ++i) {
        const Slice* listed = nullptr;
        for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          const std::span<const Slice> slices = slices_[static_cast<std::size_t>(head)];
          if (head == kv_head * group || slices.data() != listed) visible_keys(i, slices, keys);
          listed = slices.data();
          if (keys.empty() && in_.sinks.empty()) continue;
          score_row(i, head, kv_head, keys, weights);
          const T delta = forward_row(i, head, kv_head, keys, weights);
          if (!in_.dout.empty()) backward_row(i, head, kv_head, keys, weights, delta);
          if (!in_.dout.empty() && in_.magnitudes) magnitude_row(i, head, kv_head, keys, weights);
        }
      }
    }
    return std::move(result_);
  }

 private:
  /// Of one key: its score, what it weighs, and d weight / d score where that is its own (sigmoid)
  /// or d score / d (scaled product) (the cap's).
  struct Weight {
    T p = 0;
    T sigmoid_slope = 0, cap_slope = 1;
  };

  static void visible_keys(std::int64_t i, std::span<const Slice> slices,
                           std::vector<std::int64_t>& keys) {
    keys.clear();
    for (const Slice& slice : slices) {
      if (i < slice.q_begin || i >= slice.q_end) continue;
      for (std::int64_t j = slice.key_begin(i); j < slice.key_end(i); ++j) keys.push_back(j);
    }
  }

  /// Weights p <- scores.
  void score_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                 const std::vector<std::int64_t>& keys, std::vector<Weight>& weights) const {
    const auto scale = static_cast<T>(in_.scale), cap = static_cast<T>(in_.softcap);
    const T* q = in_.q.data() + (i * in_.heads + head) * in_.dim;
    weights.clear();
    for (const std::int64_t j : keys) {
      const T score = scale * dot(q, key(j, kv_head), in_.dim);
      if (cap > 0) {
        const T cosh = std::cosh(score / cap);
        weights.push_back({cap * std::tanh(score / cap), 0, 1 / (cosh * cosh)});
      } else {
        weights.push_back({score});
      }
    }
  }

  /// p: scores -> weights of the visible keys. Returns the row's delta (0 for sigmoid).
  T forward_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                const std::vector<std::int64_t>& keys, std::vector<Weight>& weights) {
    if (in_.weighting == Weighting::sigmoid) {
      const auto bias = static_cast<T>(in_.bias);
      for (Weight& w : weights) {
        const T x = w.p + bias;
        w.p = 1 / (1 + std::exp(-x));
        w.sigmoid_slope = w.p / (1 + std::exp(x));
      }
    } else {
      softmax(i, head, weights);
    }
    T* out = result_.out.data() + (i * in_.heads + head) * in_.value_dim;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const T* v = value(keys[n], kv_head);
      for (std::int64_t d = 0; d < in_.value_dim; ++d) out[d] += weights[n].p * v[d];
    }
    if (in_.dout.empty() || in_.weighting == Weighting::sigmoid) return 0;
    return dot(in_.dout.data() + (i * in_.heads + head) * in_.value_dim, out, in_.value_dim);
  }

  void softmax(std::int64_t i, std::int64_t head, std::vector<Weight>& weights) {
    const auto h = static_cast<std::size_t>(head);
    const bool sink = !in_.sinks.empty();
    T largest = sink ? in_.sinks[h] : -std::numeric_limits<T>::infinity();
    for (const Weight& w : weights) largest = std::max(largest, w.p);
    if (std::isinf(largest) && largest < 0) return;  // no key, and a sink that weighs nothing
    T sum = sink ? std::exp(in_.sinks[h] - largest) : 0;
    for (Weight& w : weights) sum += w.p = std::exp(w.p - largest);
    for (Weight& w : weights) w.p /= sum;
    result_.lse[static_cast<std::size_t>(i * in_.heads + head)] = largest + std::log(sum);
  }

  void backward_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                    const std::vector<std::int64_t>& keys, const std::vector<Weight>& weights,
                    T delta) {
    const auto scale = static_cast<T>(in_.scale);
    const std::int64_t q_at = (i * in_.heads + head) * in_.dim;
    const T* q = in_.q.data() + q_at;
    const T* dout = in_.dout.data() + (i * in_.heads + head) * in_.value_dim;
    T* dq = result_.dq.data() + q_at;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Weight& w = weights[n];
      const T* k = key(keys[n], kv_head);
      T* dk = result_.dk.data() + (keys[n] * in_.kv_heads + kv_head) * in_.dim;
      T* dv = result_.dv.data() + (keys[n] * in_.kv_heads + kv_head) * in_.value_dim;
      const T dp = dot(dout, value(keys[n], kv_head), in_.value_dim);
      const T dscore =
          in_.weighting == Weighting::sigmoid ? w.sigmoid_slope * dp : w.p * (dp - delta);
      const T ds = scale * w.cap_slope * dscore;
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        dq[d] += ds * k[d];
        dk[d] += ds * q[d];
      }
      for (std::int64_t d = 0; d < in_.value_dim; ++d) dv[d] += w.p * dout[d];
    }
    const auto h = static_cast<std::size_t>(head);
    const T lse =
        in_.sinks.empty() ? 0 : result_.lse[static_cast<std::size_t>(i * in_.heads + head)];
    if (!in_.sinks.empty() && !std::isinf(in_.sinks[h]))
      result_.dsinks[h] -= std::exp(in_.sinks[h] - lse) * delta;
  }

  /// backward_row with magnitudes in place of terms.
  void magnitude_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                     const std::vector<std::int64_t>& keys, const std::vector<Weight>& weights) {
    const auto row = static_cast<std::size_t>(i * in_.heads + head);
    const T* q = in_.q.data() + row * static_cast<std::size_t>(in_.dim);
    const T* dout = in_.dout.data() + row * static_cast<std::size_t>(in_.value_dim);
    T* dq = result_.dq_magnitude.data() + row * static_cast<std::size_t>(in_.dim);
    const bool sigmoid = in_.weighting == Weighting::sigmoid;
    const T delta =
        sigmoid ? 0
                : dot_magnitude(dout,
                                result_.out.data() + row * static_cast<std::size_t>(in_.value_dim),
                                in_.value_dim);
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Weight& w = weights[n];
      const T* k = key(keys[n], kv_head);
      T* dk = result_.dk_magnitude.data() + (keys[n] * in_.kv_heads + kv_head) * in_.dim;
      T* dv = result_.dv_magnitude.data() + (keys[n] * in_.kv_heads + kv_head) * in_.value_dim;
      const T dp = dot_magnitude(dout, value(keys[n], kv_head), in_.value_dim);
      const T ds = static_cast<T>(std::abs(in_.scale)) * w.cap_slope *
                   (sigmoid ? w.sigmoid_slope * dp : w.p * (dp + delta));
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        dq[d] += ds * std::abs(k[d]);
        dk[d] += ds * std::abs(q[d]);
      }
      for (std::int64_t d = 0; d < in_.value_dim; ++d) dv[d] += w.p * std::abs(dout[d]);
    }
    const auto h = static_cast<std::size_t>(head);
    if (in_.sinks.empty() || std::isinf(in_.sinks[h])) return;
    // The exponent's rounding is relative to its two parts.
    const T sink = in_.sinks[h], lse = result_.lse[row];
    result_.dsinks_magnitude[h] +=
        (1 + std::abs(sink) + std::abs(lse)) * std::exp(sink - lse) * delta;
  }

  const T* key(std::int64_t j, std::int64_t kv_head) const {
    return in_.k.data() + (j * in_.kv_heads + kv_head) * in_.dim;
  }
  const T* value(std::int64_t j, std::int64_t kv_head) const {
    return in_.v.data() + (j * in_.kv_heads + kv_head) * in_.value_dim;
  }

  const ReferenceInputs<T>& in_;
  std::vector<std::span<const Slice>> slices_;
  ReferenceResult<T> result_;
};

}  // namespace

template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const Slice> slices) {
  return Reference<T>(inputs, std::vector(static_cast<std::size_t>(inputs.heads), slices)).run();
}

template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const std::vector<Slice>> head_slices) {
  return Reference<T>(inputs, {head_slices.begin(), head_slices.end()}).run();
}

template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs, const HeadMasks& masks) {
  std::vector<std::span<const Slice>> slices;
  for (int head = 0; head < inputs.heads; ++head) slices.push_back(masks.of(head).slices());
  return Reference<T>(inputs, std::move(slices)).run();
}

#define LONGHAUL_REFERENCE(T)                                                           \
  template ReferenceResult<T> reference_attention(const ReferenceInputs<T>&,            \
                                                  std::span<const Slice>);              \
  template ReferenceResult<T> reference_attention(const ReferenceInputs<T>&,            \
                                                  std::span<const std::vector<Slice>>); \
  template ReferenceResult<T> reference_attention(const ReferenceInputs<T>&, const HeadMasks&)
LONGHAUL_REFERENCE(double);
LONGHAUL_REFERENCE(float);
#undef LONGHAUL_REFERENCE

}  // namespace longhaul::attention

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

/// One query head of one row at a time, in the order of the formulae.
template <class T>
class Reference {
 public:
  Reference(const ReferenceInputs<T>& inputs, std::span<const Slice> slices)
      : in_(inputs), slices_(slices) {
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
    result_.lse.assign(size(in_.q_rows, in_.heads, 1), -std::numeric_limits<T>::infinity());
    if (in_.dout.empty()) return;
    LONGHAUL_CHECK(in_.dout.size() == result_.out.size(), "dout has ", in_.dout.size(),
                   " elements");
    result_.dq.assign(in_.q.size(), T{0});
    result_.dk.assign(in_.k.size(), T{0});
    result_.dv.assign(in_.v.size(), T{0});
  }

  ReferenceResult<T> run() {
    // Gradients of a key/value head come from its own query heads only.
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t kv_head = 0; kv_head < in_.kv_heads; ++kv_head) {
      const std::int64_t group = in_.heads / in_.kv_heads;
      std::vector<std::int64_t> keys;
      std::vector<T> p;
      for (std::int64_t i = 0; i < in_.q_rows; ++i) {
        visible_keys(i, keys);
        if (keys.empty()) continue;
        for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          forward_row(i, head, kv_head, keys, p);
          if (!in_.dout.empty()) backward_row(i, head, kv_head, keys, p);
        }
      }
    }
    return std::move(result_);
  }

 private:
  void visible_keys(std::int64_t i, std::vector<std::int64_t>& keys) const {
    keys.clear();
    for (const Slice& slice : slices_) {
      if (i < slice.q_begin || i >= slice.q_end) continue;
      for (std::int64_t j = slice.key_begin(i); j < slice.key_end(i); ++j) keys.push_back(j);
    }
  }

  /// p <- probabilities of the visible keys.
  void forward_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                   const std::vector<std::int64_t>& keys, std::vector<T>& p) {
    const auto scale = static_cast<T>(in_.scale);
    const T* q = in_.q.data() + (i * in_.heads + head) * in_.dim;
    p.clear();
    for (const std::int64_t j : keys) p.push_back(scale * dot(q, key(j, kv_head), in_.dim));
    const T largest = *std::max_element(p.begin(), p.end());
    T sum = 0;
    for (T& x : p) sum += x = std::exp(x - largest);
    T* out = result_.out.data() + (i * in_.heads + head) * in_.value_dim;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      p[n] /= sum;
      const T* v = value(keys[n], kv_head);
      for (std::int64_t d = 0; d < in_.value_dim; ++d) out[d] += p[n] * v[d];
    }
    result_.lse[static_cast<std::size_t>(i * in_.heads + head)] = largest + std::log(sum);
  }

  void backward_row(std::int64_t i, std::int64_t head, std::int64_t kv_head,
                    const std::vector<std::int64_t>& keys, const std::vector<T>& p) {
    const auto scale = static_cast<T>(in_.scale);
    const std::int64_t q_at = (i * in_.heads + head) * in_.dim,
                       out_at = (i * in_.heads + head) * in_.value_dim;
    const T* q = in_.q.data() + q_at;
    const T* dout = in_.dout.data() + out_at;
    T* dq = result_.dq.data() + q_at;
    const T delta = dot(dout, result_.out.data() + out_at, in_.value_dim);
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const T* k = key(keys[n], kv_head);
      T* dk = result_.dk.data() + (keys[n] * in_.kv_heads + kv_head) * in_.dim;
      T* dv = result_.dv.data() + (keys[n] * in_.kv_heads + kv_head) * in_.value_dim;
      const T ds = scale * p[n] * (dot(dout, value(keys[n], kv_head), in_.value_dim) - delta);
      for (std::int64_t d = 0; d < in_.dim; ++d) {
        dq[d] += ds * k[d];
        dk[d] += ds * q[d];
      }
      for (std::int64_t d = 0; d < in_.value_dim; ++d) dv[d] += p[n] * dout[d];
    }
  }

  const T* key(std::int64_t j, std::int64_t kv_head) const {
    return in_.k.data() + (j * in_.kv_heads + kv_head) * in_.dim;
  }
  const T* value(std::int64_t j, std::int64_t kv_head) const {
    return in_.v.data() + (j * in_.kv_heads + kv_head) * in_.value_dim;
  }

  const ReferenceInputs<T>& in_;
  std::span<const Slice> slices_;
  ReferenceResult<T> result_;
};

}  // namespace

template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const Slice> slices) {
  return Reference<T>(inputs, slices).run();
}

template ReferenceResult<double> reference_attention(const ReferenceInputs<double>&,
                                                     std::span<const Slice>);
template ReferenceResult<float> reference_attention(const ReferenceInputs<float>&,
                                                    std::span<const Slice>);

}  // namespace longhaul::attention

#pragma once
// The reference that everything is held against: dense attention, one device, no blocking, O(n_q
// n_k) work and O(n_k) memory a row, in double (the oracle) or float (the plain computation whose
// error sets the tolerance). Shares no code with the kernels.

#include <cstdint>
#include <span>
#include <vector>

#include "attention/block.h"
#include "attention/head_masks.h"
#include "attention/mask.h"

namespace longhaul::attention {

template <class T>
struct ReferenceInputs {
  std::int64_t q_rows = 0, k_rows = 0;
  std::int64_t heads = 0, kv_heads = 0, dim = 0, value_dim = 0;
  std::span<const T> q{}, k{}, v{};  ///< [rows, heads, dim], contiguous
  std::span<const T> dout{};         ///< [q_rows, heads, value_dim]; empty for forward only
  double scale = 1;
  double softcap = 0;  ///< 0: none
  Weighting weighting = Weighting::softmax;
  double bias = 0;             ///< sigmoid only
  std::span<const T> sinks{};  ///< [heads], softmax only; empty: none
  bool magnitudes = false;     ///< also those of the gradients
};
template <class T>
struct ReferenceResult {
  std::vector<T> out;
  std::vector<T> lse;  ///< [q_rows, heads]; -inf for a row without a key or sink; empty for sigmoid
  std::vector<T> dq, dk, dv;  ///< empty without dout
  std::vector<T> dsinks;      ///< [heads]; empty without dout or sinks
  /// The same sums with every term's magnitude in its place (products, the two parts of dp -
  /// delta): the scale of rounding errors where a gradient cancels. Empty unless asked for.
  std::vector<T> dq_magnitude, dk_magnitude, dv_magnitude, dsinks_magnitude;
};

/// T = double or float. The visible pairs are those of `slices`, for every head.
template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const Slice> slices);
/// Query head h sees the pairs of head_slices[h].
template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const std::vector<Slice>> head_slices);
/// Query head h sees the pairs of masks.of(h).
template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs, const HeadMasks& masks);

}  // namespace longhaul::attention

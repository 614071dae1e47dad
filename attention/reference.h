#pragma once
// The reference that everything is held against: dense attention, one device, no blocking, O(n_q
// n_k) work and O(n_k) memory a row, in double (the oracle) or float (the plain computation whose
// error sets the tolerance). Shares no code with the kernels.

#include <cstdint>
#include <span>
#include <vector>

#include "attention/mask.h"

namespace longhaul::attention {

template <class T>
struct ReferenceInputs {
  std::int64_t q_rows = 0, k_rows = 0;
  std::int64_t heads = 0, kv_heads = 0, dim = 0, value_dim = 0;
  std::span<const T> q{}, k{}, v{};  ///< [rows, heads, dim], contiguous
  std::span<const T> dout{};         ///< [q_rows, heads, value_dim]; empty for forward only
  double scale = 1;
};
template <class T>
struct ReferenceResult {
  std::vector<T> out, lse;    ///< lse [q_rows, heads]; -inf for a row without a key
  std::vector<T> dq, dk, dv;  ///< empty without dout
};

/// T = double or float. The visible pairs are those of `slices`.
template <class T>
ReferenceResult<T> reference_attention(const ReferenceInputs<T>& inputs,
                                       std::span<const Slice> slices);

}  // namespace longhaul::attention

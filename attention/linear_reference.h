#pragma once
// The reference that linear attention is held against: the recurrence of linear.h and its own
// backward recurrence, token by token over a whole sequence, in double (the oracle) or float.
// O(rows D E) work a head, and the states of 64 tokens in memory. Shares no code with the kernels.

#include <cstdint>
#include <span>
#include <vector>

#include "attention/linear.h"

namespace longhaul::attention {

/// Contiguous, in the shapes of linear.h; states [E,H,D].
template <class T>
struct LinearReferenceInputs {
  std::int64_t rows = 0;
  std::int64_t heads = 0, key_heads = 0, dim = 0, value_dim = 0;
  std::span<const T> q{}, k{}, v{};
  std::span<const T> log_decay{};          ///< empty without decay
  std::span<const T> beta{};               ///< empty under the sum rule
  std::span<const std::int64_t> starts{};  ///< rows where a document begins, rising
  std::span<const T> initial_state{};      ///< before row 0, unless it is a start; empty: zero
  std::span<const T> dout{};               ///< empty as dfinal_state: forward only
  std::span<const T> dfinal_state{};       ///< of the state after the last row; empty: zero
  bool backward() const { return !dout.empty() || !dfinal_state.empty(); }
};
template <class T>
struct LinearReferenceResult {
  std::vector<T> out, final_state;
  std::vector<T> dq, dk, dv;         ///< empty of forward only, as all below
  std::vector<T> dlog_decay, dbeta;  ///< empty where the input is
  std::vector<T> dinitial_state;     ///< zero where row 0 is a start
};

/// T = double or float.
template <class T>
LinearReferenceResult<T> reference_linear(const LinearReferenceInputs<T>& inputs,
                                          const Recurrence& recurrence);

}  // namespace longhaul::attention

#pragma once
// The value dims' side of a chunk: how it is written into a state and read from it. States are
// [D, E] here, so that a chunk's products with them need no copy; outside they are [E, H, D].

#include "attention/linear_keys_cpu.h"

namespace longhaul::attention::avx2 {

/// to <- a head's state, zero without data.
inline void load_state(const runtime::ConstTensorView& view, std::int64_t head,
                       const ChunkSizes& sizes, Matrix to, Matrix rows) {
  if (view.data() == nullptr) return clear(sizes.dim(), to);
  load_rows(rows_of(view, head, 0, sizes.value_dim()), 1, rows);
  transpose(sizes.value_dim(), sizes.dim(), rows, to);
}
/// A head's state <- from. `rows` is a state [E, D] that is overwritten.
inline void store_state(Matrix from, std::int64_t width, const runtime::TensorView& view,
                        std::int64_t head, const ChunkSizes& sizes, Matrix rows) {
  transpose(sizes.dim(), width, from, rows);
  store_rows(rows, view, head, 0, width);
}

/// state <- its decay over the chunk.
inline void decay_state(const ChunkKeys& keys, const ChunkSizes& sizes, std::int64_t width,
                        Matrix state) {
  if (!sizes.gated()) return;
  for (std::int64_t d = 0; d < sizes.dim(); ++d) {
    const __m256 high = _mm256_broadcast_ss(keys.decay_high + d),
                 low = _mm256_broadcast_ss(keys.decay_low + d);
    float* row = state.row(d);
    for (std::int64_t e = 0; e < width; e += 8)
      _mm256_store_ps(row + e, decay8(_mm256_load_ps(row + e), high, low));
  }
}

/// A state without data is zero, and costs nothing: most chunks of short documents begin from one.
inline bool is_zero(Matrix state) { return state.data == nullptr; }

/// to <- rows S, or zero.
inline void read_state(std::int64_t count, std::int64_t width, std::int64_t depth, Matrix rows,
                       Matrix state, Matrix to) {
  if (is_zero(state)) return clear(count, to);
  product<Operand::rows, Into::store>(count, width, depth, rows, state, to);
}

/// The delta rule in a chunk: what each token writes, U, from (I + A) U = beta (V - K^ S), A = beta
/// A0.
class Updates {
 public:
  Updates(Scratch& scratch, const ChunkSizes& of)
      : sizes(of),
        beta(scratch.floats(kChunk)),
        mixing(matrix(scratch, of.delta() ? kChunk : 0, kChunk)) {}

  void load_beta(const ChunkKeys& keys, const LinearInputs& inputs, std::int64_t head,
                 std::int64_t begin) {
    if (!sizes.delta()) return;
    const float* from = inputs.beta.as<float>() + head * inputs.beta.stride(1);
    for (std::int64_t i = 0; i < keys.tokens; ++i) {
      beta[i] = from[(begin + i) * inputs.beta.stride(0)];
      scaled(round_up(i + 1, kTileColumns), beta[i], keys.overlaps.row(i), mixing.row(i));
    }
  }

  /// u: v (all zero where `no_values`) -> U, of `width` columns; `state` is that before the chunk.
  /// Leaves V - K^ S in `error`. Under the sum rule u stays v.
  void solve(const ChunkKeys& keys, Matrix state, std::int64_t width, bool no_values, Matrix u,
             Matrix error) const {
    if (!sizes.delta()) return;
    read_state(keys.tokens, width, sizes.dim(), keys.k_in, state, error);
    for (std::int64_t i = 0; i < keys.tokens; ++i) {
      const __m256 factor = _mm256_set1_ps(beta[i]);
      for (std::int64_t e = 0; e < round_up(width, kTileColumns); e += 8) {
        const __m256 value = no_values ? _mm256_setzero_ps() : _mm256_load_ps(u.row(i) + e);
        const __m256 x = _mm256_sub_ps(value, _mm256_load_ps(error.row(i) + e));
        _mm256_store_ps(error.row(i) + e, x);
        _mm256_store_ps(u.row(i) + e, _mm256_mul_ps(factor, x));
      }
    }
    solve_lower(keys.tokens, width, mixing, u);
  }

  /// state <- the state after the chunk; before it, it is zero where `fresh`.
  void write(const ChunkKeys& keys, Matrix u, std::int64_t width, bool fresh, Matrix state) const {
    if (!fresh) decay_state(keys, sizes, round_up(width, kTileColumns), state);
    product<Operand::columns, Into::add>(sizes.dim(), width, keys.tokens, keys.k_out, u, state);
  }

  /// du <- the gradient of R (delta rule) or of v, from those of the outputs and of the state
  /// after.
  void solve_backward(const ChunkKeys& keys, Matrix dout, Matrix dstate, Matrix du) const {
    const std::int64_t width = sizes.value_dim();
    read_state(keys.tokens, width, sizes.dim(), keys.k_out, dstate, du);
    add_lower_transposed(keys.tokens, width, keys.weights, dout, du);
    if (sizes.delta()) solve_lower_transposed(keys.tokens, width, mixing, du);
  }
  /// to <- by * beta * rows.
  void times_beta(const ChunkKeys& keys, float by, Matrix rows, Matrix to) const {
    for (std::int64_t i = 0; i < keys.tokens; ++i)
      scaled(sizes.value_columns(), by * beta[i], rows.row(i), to.row(i));
  }
  /// dstate <- the gradient of the state before the chunk; of that after it, it is zero where
  /// `fresh`. minus_dv: delta rule.
  void write_backward(const ChunkKeys& keys, Matrix dout, Matrix minus_dv, bool fresh,
                      Matrix dstate) const {
    if (!fresh) decay_state(keys, sizes, sizes.value_columns(), dstate);
    const auto add = [&](Matrix readers, Matrix gradients) {
      product<Operand::columns, Into::add>(sizes.dim(), sizes.value_dim(), keys.tokens, readers,
                                           gradients, dstate);
    };
    add(keys.q_in, dout);
    if (sizes.delta()) add(keys.k_in, minus_dv);
  }

  const ChunkSizes sizes;
  float* beta;
  Matrix mixing;  // A
};

}  // namespace longhaul::attention::avx2

// The value dims' side of a chunk: how it is written into a state and read from it. States are
// [D, E] here, so that a chunk's products with them need no copy; outside they are [E, H, D].

#if defined(LONGHAUL_ATTENTION_LINEAR_VALUES_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_VALUES_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_VALUES_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_VALUES_CPU_H
#endif

#include "attention/linear_keys_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

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

/// to <- a state decayed over the chunk; `to` may be `from`.
inline void decay_state(const ChunkKeys& keys, const ChunkSizes& sizes, std::int64_t width,
                        Matrix from, Matrix to) {
  if (!sizes.gated()) {
    if (to.data != from.data) std::copy_n(from.data, sizes.dim() * from.ld, to.data);
    return;
  }
  for (std::int64_t d = 0; d < sizes.dim(); ++d) {
    const Vector high = hn::Set(kFloats, keys.decay_high[d]),
                 low = hn::Set(kFloats, keys.decay_low[d]);
    for (std::int64_t e = 0; e < width; e += kLanes)
      hn::Store(decayed(hn::Load(kFloats, from.row(d) + e), high, low), kFloats, to.row(d) + e);
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
      scaled(padded_to_vectors(i + 1), beta[i], keys.overlaps.row(i), mixing.row(i));
    }
  }

  /// u: v (all zero where `no_values`) -> U, of `width` columns; `state` is that before the chunk.
  /// Leaves V - K^ S in `error`. Under the sum rule u stays v.
  void solve(const ChunkKeys& keys, Matrix state, std::int64_t width, bool no_values, Matrix u,
             Matrix error) const {
    if (!sizes.delta()) return;
    read_state(keys.tokens, width, sizes.dim(), keys.k_in, state, error);
    for (std::int64_t i = 0; i < keys.tokens; ++i) {
      const Vector factor = hn::Set(kFloats, beta[i]);
      for (std::int64_t e = 0; e < width; e += kLanes) {
        const Vector value = no_values ? hn::Zero(kFloats) : hn::Load(kFloats, u.row(i) + e);
        const Vector x = hn::Sub(value, hn::Load(kFloats, error.row(i) + e));
        hn::Store(x, kFloats, error.row(i) + e);
        hn::Store(hn::Mul(factor, x), kFloats, u.row(i) + e);
      }
    }
    solve_lower(keys.tokens, width, mixing, u);
  }

  /// after <- the state after the chunk, which `before` may lie in.
  void write(const ChunkKeys& keys, Matrix u, std::int64_t width, Matrix before,
             Matrix after) const {
    if (is_zero(before)) {
      product<Operand::columns, Into::store>(sizes.dim(), width, keys.tokens, keys.k_out, u, after);
    } else {
      decay_state(keys, sizes, width, before, after);
      product<Operand::columns, Into::add>(sizes.dim(), width, keys.tokens, keys.k_out, u, after);
    }
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
    if (!fresh) decay_state(keys, sizes, sizes.value_columns(), dstate, dstate);
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

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_LINEAR_VALUES_CPU_H

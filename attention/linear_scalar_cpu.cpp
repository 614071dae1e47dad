// Chunks whose decay is none, a constant a head, or a scalar a token.
#include <array>

#include "attention/linear_keys_cpu.h"

namespace longhaul::attention::avx2 {

ScalarKeys::ScalarKeys(Scratch& scratch, const ChunkSizes& of, bool gradients)
    : ChunkKeys(scratch, of),
      k_transposed(matrix(scratch, of.dim(), kChunk)),
      fades(matrix(scratch, of.gated() ? kChunk : 0, kChunk)),
      spans(matrix(scratch, of.gated() && gradients ? kChunk : 0, kChunk)),
      in_factor(scratch.floats(kChunk)),
      out_factor(scratch.floats(kChunk)) {}

/// fades, in_factor, out_factor and the chunk's decay. Every sum begins where its factor does.
void ScalarKeys::load_factors(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                              bool pairs) {
  const runtime::ConstTensorView& gates = inputs.log_decay;
  const float* a = gates.as<float>() + head * gates.stride(1);
  const bool constant = sizes.how.decay == Decay::head;
  std::array<double, kChunk> sums{};  // from after token j
  double from_start = 0;
  alignas(32) std::array<float, kChunk> logs{};
  for (std::int64_t i = 0; i < tokens; ++i) {
    const double gate = static_cast<double>(constant ? *a : a[(begin + i) * gates.stride(0)]);
    const std::int64_t columns = round_up(i + 1, 8);
    for (std::int64_t j = 0; j < i; ++j) sums[static_cast<std::size_t>(j)] += gate;
    from_start += gate;
    in_factor[i] = static_cast<float>(from_start);
    if (!pairs && i + 1 < tokens) continue;
    for (std::int64_t j = 0; j < columns; ++j)
      logs[static_cast<std::size_t>(j)] = static_cast<float>(sums[static_cast<std::size_t>(j)]);
    exp_row(columns, logs.data(), pairs ? fades.row(i) : out_factor);
  }
  if (pairs) std::copy_n(fades.row(tokens - 1), tokens, out_factor);
  exp_row(round_up(tokens, 8), in_factor, in_factor);
  const TwoFloats decay = exp_of(from_start);
  std::fill_n(decay_high, sizes.columns(), decay.high);
  std::fill_n(decay_low, sizes.columns(), decay.low);
}

void ScalarKeys::load(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                      std::int64_t count, KeyUses uses) {
  load_rows_of(inputs, head, begin, count, uses);
  const bool delta = sizes.delta(), pairs = uses.weights || delta, gated = sizes.gated();
  if (gated) {
    load_factors(inputs, head, begin, pairs);
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (uses.queries) scaled(sizes.columns(), in_factor[i], q.row(i), q_in.row(i));
      if (delta) scaled(sizes.columns(), in_factor[i], k.row(i), k_in.row(i));
      scaled(sizes.columns(), out_factor[i], k.row(i), k_out.row(i));
    }
  }
  if (!pairs) return;
  transpose(tokens, sizes.dim(), k, k_transposed);
  const auto make = [&](Matrix rows, std::int64_t diagonal, Matrix to) {
    lower_of_product(tokens, sizes.dim(), rows, k_transposed, to);
    for (std::int64_t i = 0; i < tokens; ++i) {
      if (gated) multiplied(round_up(i + 1, 8), to.row(i), fades.row(i), to.row(i));
      clear_right(to.row(i), i, i + diagonal);
    }
  };
  if (uses.weights) make(q, 1, weights);
  if (delta) make(k, 0, overlaps);
}

void ScalarKeys::backward(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns(), dim = sizes.dim();
  const bool delta = sizes.delta(), gated = sizes.gated();
  if (gated) {
    alignas(32) float reads[kChunk], writes[kChunk];
    for (std::int64_t i = 0; i < tokens; ++i) {
      scaled(columns, in_factor[i], g.dq.row(i), g.dq.row(i));
      scaled(columns, out_factor[i], g.dk.row(i), g.dk.row(i));
      reads[i] = dot(columns, q.row(i), g.dq.row(i));
      writes[i] = dot(columns, k.row(i), g.dk.row(i));
      if (delta) {
        scaled(columns, in_factor[i], g.dk_read.row(i), g.dk_read.row(i));
        reads[i] += dot(columns, k.row(i), g.dk_read.row(i));
      }
      const std::int64_t span = round_up(i + 1, 8);
      multiplied(span, g.dweights.row(i), weights.row(i), spans.row(i));
      if (delta) add_product(span, g.doverlaps.row(i), overlaps.row(i), spans.row(i));
      multiplied(span, g.dweights.row(i), fades.row(i), g.dweights.row(i));
      if (delta) multiplied(span, g.doverlaps.row(i), fades.row(i), g.doverlaps.row(i));
      clear_right(spans.row(i), i, i);
    }
    decay_backward(g, reads, writes);
  }
  add_lower(tokens, dim, g.dweights, k, g.dq);
  for (std::int64_t i = 0; i < tokens; ++i) {
    scaled(columns, sizes.how.scale, g.dq.row(i), g.dq.row(i));
    if (delta) added(columns, g.dk_read.row(i), g.dk.row(i));
  }
  add_lower_transposed(tokens, dim, g.dweights, q, g.dk);
  if (!delta) return;
  add_lower_transposed(tokens, dim, g.doverlaps, k, g.dk);
  add_lower(tokens, dim, g.doverlaps, k, g.dk);
}

/// The gradient of a token's gate sums everything that spans it, from before it to it or later, and
/// subtracts nothing.
void ScalarKeys::decay_backward(const KeyGradients& g, const float* reads,
                                const float* writes) const {
  float state = 0;
  for (std::int64_t d = 0; d < sizes.dim(); ++d) state += g.overlap[d];
  state *= *decay_high;
  float written[kChunk];  // before each token
  float sum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    written[t] = sum;
    sum += writes[t];
  }
  alignas(32) float pairs[kChunk + kTileColumns] = {};  // of key j and any query from t on
  float read = 0;
  for (std::int64_t t = tokens - 1; t >= 0; --t) {
    read += reads[t];
    __m256 between = _mm256_setzero_ps();
    for (std::int64_t j = 0; j < t; j += 8) {
      const __m256 column =
          _mm256_add_ps(_mm256_load_ps(pairs + j), _mm256_load_ps(spans.row(t) + j));
      _mm256_store_ps(pairs + j, column);
      const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i before = _mm256_cmpgt_epi32(
          _mm256_set1_epi32(static_cast<int>(std::min<std::int64_t>(8, t - j))), lanes);
      between = _mm256_add_ps(between, _mm256_and_ps(column, _mm256_castsi256_ps(before)));
    }
    *g.dlog_decay.row(t) = sum8(between) + read + written[t] + state;
  }
}

}  // namespace longhaul::attention::avx2

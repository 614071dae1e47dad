// Chunks whose decay is none, a constant a head, or a scalar a token.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_scalar_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <array>

#include "attention/linear_keys_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

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
  alignas(64) std::array<float, kChunk> logs{};
  for (std::int64_t i = 0; i < tokens; ++i) {
    const double gate = static_cast<double>(constant ? *a : a[(begin + i) * gates.stride(0)]);
    const std::int64_t columns = padded_to_vectors(i + 1);
    for (std::int64_t j = 0; j < i; ++j) sums[static_cast<std::size_t>(j)] += gate;
    from_start += gate;
    in_factor[i] = static_cast<float>(from_start);
    if (!pairs && i + 1 < tokens) continue;
    for (std::int64_t j = 0; j < columns; ++j)
      logs[static_cast<std::size_t>(j)] = static_cast<float>(sums[static_cast<std::size_t>(j)]);
    exp_row(columns, logs.data(), pairs ? fades.row(i) : out_factor);
  }
  if (pairs) std::copy_n(fades.row(tokens - 1), tokens, out_factor);
  exp_row(padded_to_vectors(tokens), in_factor, in_factor);
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
      if (gated) multiplied(padded_to_vectors(i + 1), to.row(i), fades.row(i), to.row(i));
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
    alignas(64) float reads[kChunk], writes[kChunk];
    for (std::int64_t i = 0; i < tokens; ++i) {
      scaled(columns, in_factor[i], g.dq.row(i), g.dq.row(i));
      scaled(columns, out_factor[i], g.dk.row(i), g.dk.row(i));
      reads[i] = dot(columns, q.row(i), g.dq.row(i));
      writes[i] = dot(columns, k.row(i), g.dk.row(i));
      if (delta) {
        scaled(columns, in_factor[i], g.dk_read.row(i), g.dk_read.row(i));
        reads[i] += dot(columns, k.row(i), g.dk_read.row(i));
      }
      const std::int64_t span = padded_to_vectors(i + 1);
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
  alignas(64) float pairs[kChunk] = {};  // of key j and any query from t on
  float read = 0;
  for (std::int64_t t = tokens - 1; t >= 0; --t) {
    read += reads[t];
    Vector between = hn::Zero(kFloats);
    for (std::int64_t j = 0; j < t; j += kLanes) {
      const Vector column =
          hn::Add(hn::Load(kFloats, pairs + j), hn::Load(kFloats, spans.row(t) + j));
      hn::Store(column, kFloats, pairs + j);
      const auto before = hn::FirstN(kFloats, static_cast<std::size_t>(t - j));
      between = hn::Add(between, hn::IfThenElseZero(before, column));
    }
    *g.dlog_decay.row(t) = sum_of_lanes(between) + read + written[t] + state;
  }
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

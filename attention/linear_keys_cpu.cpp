// What chunks of every decay share.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_keys_cpu.cpp"
#include "runtime/simd_cpu.h"

#include "attention/linear_keys_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

ChunkKeys::ChunkKeys(Scratch& scratch, const ChunkSizes& of)
    : q(matrix(scratch, kChunk, of.dim())),
      k(matrix(scratch, kChunk, of.dim())),
      q_in(q),
      k_in(k),
      k_out(k),
      weights(matrix(scratch, kChunk, kChunk)),
      overlaps(matrix(scratch, of.delta() ? kChunk : 0, kChunk)),
      sizes(of) {
  if (!of.gated()) return;
  q_in = matrix(scratch, kChunk, of.dim());
  if (of.delta()) k_in = matrix(scratch, kChunk, of.dim());
  k_out = matrix(scratch, kChunk, of.dim());
  decay_high = scratch.floats(of.columns());
  decay_low = scratch.floats(of.columns());
}

void ChunkKeys::load_rows_of(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                             std::int64_t count, KeyUses uses) {
  tokens = count;
  load_rows(rows_of(inputs.k, sizes.key_head(head), begin, count), 1, k);
  if (uses.queries)
    load_rows(rows_of(inputs.q, sizes.key_head(head), begin, count), sizes.how.scale, q);
}

std::unique_ptr<ChunkKeys> make_chunk_keys(Scratch& scratch, const ChunkSizes& sizes,
                                           bool gradients) {
  if (sizes.how.decay == Decay::vector)
    return std::make_unique<VectorKeys>(scratch, sizes, gradients);
  return std::make_unique<ScalarKeys>(scratch, sizes, gradients);
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

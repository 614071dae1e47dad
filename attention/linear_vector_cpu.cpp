// Chunks whose decay is a vector a token: GLA, Kimi Delta Attention.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_vector_cpu.cpp"
#include "runtime/simd_cpu.h"

#include "attention/linear_keys_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

constexpr hn::ScalableTag<double> kDoubles;
using Doubles = hn::Vec<decltype(kDoubles)>;
constexpr hn::Rebind<float, decltype(kDoubles)> kHalf;
constexpr std::int64_t kDoubleLanes = kLanes / 2;

}  // namespace

VectorKeys::VectorKeys(Scratch& scratch, const ChunkSizes& of, bool gradients)
    : ChunkKeys(scratch, of),
      alpha(matrix(scratch, kChunk, of.dim())),
      row_factor(matrix(scratch, kChunk, of.dim())),
      column_factor(matrix(scratch, kChunk, of.dim())),
      block_factor(matrix(scratch, kBlocks, of.dim())),
      earlier_transposed(matrix(scratch, of.dim(), kChunk)),
      ones(scratch.floats(of.columns())),
      faded(scratch.floats(of.columns())),
      factor(scratch.floats(of.columns())),
      earlier(matrix(scratch, gradients ? kChunk : 0, of.dim())),
      later_q(matrix(scratch, gradients ? kChunk : 0, of.dim())),
      later_k(matrix(scratch, gradients && of.delta() ? kChunk : 0, of.dim())),
      read_sums(matrix(scratch, gradients ? kBlocks * kBlocks : 0, of.dim())),
      write_sums(matrix(scratch, gradients ? kBlocks : 0, of.dim())),
      across(matrix(scratch, gradients ? kBlocks : 0, of.dim())) {
  if (ones != nullptr) std::fill_n(ones, of.columns(), 1.0f);
}

void VectorKeys::load_factors(const LinearInputs& inputs, std::int64_t head, std::int64_t begin) {
  const HeadRows gates = rows_of(inputs.log_decay, head, begin, tokens);
  const std::int64_t columns = sizes.columns();
  load_rows(gates, 1, alpha);
  // Sums of a block and of the chunk, each from zero.
  for (std::int64_t d = 0; d < columns; d += kDoubleLanes) {
    Doubles chunk = hn::Zero(kDoubles);
    for (std::int64_t block = 0; block < blocks(); ++block) {
      Doubles sum = hn::Zero(kDoubles);
      for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t)
        sum = hn::Add(sum, hn::PromoteTo(kDoubles, hn::Load(kHalf, alpha.row(t) + d)));
      hn::Store(hn::DemoteTo(kHalf, sum), kHalf, block_factor.row(block) + d);
      chunk = hn::Add(chunk, sum);
    }
    alignas(64) double sums[kDoubleLanes];
    hn::Store(chunk, kDoubles, sums);
    for (std::int64_t i = 0; i < kDoubleLanes; ++i) {
      const TwoFloats decay = exp_of(sums[i]);
      decay_high[d + i] = decay.high;
      decay_low[d + i] = decay.low;
    }
  }
  for (std::int64_t block = 0; block < blocks(); ++block) {
    exp_row(columns, block_factor.row(block), block_factor.row(block));
    const std::int64_t first = block * kBlock, last = first + block_tokens(block) - 1;
    for (std::int64_t t = first; t <= last; ++t) {
      exp_row(columns, alpha.row(t), alpha.row(t));
      if (t == first) {
        std::copy_n(alpha.row(t), columns, row_factor.row(t));
      } else {
        multiplied(columns, row_factor.row(t - 1), alpha.row(t), row_factor.row(t));
      }
    }
    std::fill_n(column_factor.row(last), columns, 1.0f);
    for (std::int64_t t = last - 1; t >= first; --t)
      multiplied(columns, column_factor.row(t + 1), alpha.row(t + 1), column_factor.row(t));
  }
}

/// q_in, k_in, k_out against their own block's borders.
void VectorKeys::near_rows(KeyUses uses) {
  const std::int64_t columns = sizes.columns();
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (uses.queries) multiplied(columns, q.row(t), row_factor.row(t), q_in.row(t));
    if (sizes.delta()) multiplied(columns, k.row(t), row_factor.row(t), k_in.row(t));
    multiplied(columns, k.row(t), column_factor.row(t), k_out.row(t));
  }
}

/// From a block's borders to the chunk's.
void VectorKeys::anchor_at_chunk(KeyUses uses) {
  const std::int64_t columns = sizes.columns();
  const auto scale_block = [&](std::int64_t block, Matrix rows) {
    for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t)
      multiplied(columns, rows.row(t), factor, rows.row(t));
  };
  std::copy_n(block_factor.row(0), columns, factor);
  for (std::int64_t block = 1; block < blocks(); ++block) {
    if (uses.queries) scale_block(block, q_in);
    if (sizes.delta()) scale_block(block, k_in);
    multiplied(columns, factor, block_factor.row(block), factor);
  }
  std::copy_n(block_factor.row(blocks() - 1), columns, factor);
  for (std::int64_t block = blocks() - 2; block >= 0; --block) {
    scale_block(block, k_out);
    multiplied(columns, factor, block_factor.row(block), factor);
  }
}

/// Weights and overlaps of key j, which `faded` holds decayed to token i - 1 (to i where i is j),
/// and tokens i to i + Count - 1; decays it on.
template <int Count, bool with_weights, bool with_overlaps>
void VectorKeys::pairs_of_key(std::int64_t j, std::int64_t i) {
  Vector weight[Count], overlap[Count];
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r) weight[r] = overlap[r] = hn::Zero(kFloats);
  const float* rates = i == j ? ones : alpha.row(i);
  for (std::int64_t d = 0; d < sizes.columns(); d += kLanes) {
    Vector key = hn::Load(kFloats, faded + d);
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r) {
      key = hn::Mul(key, hn::Load(kFloats, (r == 0 ? rates : alpha.row(i + r)) + d));
      if (with_weights) weight[r] = hn::MulAdd(hn::Load(kFloats, q.row(i + r) + d), key, weight[r]);
      if (with_overlaps)
        overlap[r] = hn::MulAdd(hn::Load(kFloats, k.row(i + r) + d), key, overlap[r]);
    }
    hn::Store(key, kFloats, faded + d);
  }
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r) {
    if (with_weights) weights.row(i + r)[j] = sum_of_lanes(weight[r]);
    if (with_overlaps) overlaps.row(i + r)[j] = sum_of_lanes(overlap[r]);
  }
}

/// The weights and overlaps of two tokens of one block.
template <bool with_weights, bool with_overlaps>
void VectorKeys::pairs_of_block(std::int64_t block) {
  const std::int64_t first = block * kBlock, end = first + block_tokens(block);
  for (std::int64_t j = first; j < end; ++j) {
    std::copy_n(k.row(j), sizes.columns(), faded);
    std::int64_t i = j;
    for (; i + 4 <= end; i += 4) pairs_of_key<4, with_weights, with_overlaps>(j, i);
    for (; i < end; ++i) pairs_of_key<1, with_weights, with_overlaps>(j, i);
  }
  for (std::int64_t i = first; i < end; ++i) {
    if (with_weights) clear_right(weights.row(i), i, i + 1);
    if (with_overlaps) clear_right(overlaps.row(i), i, i);
  }
}

void VectorKeys::load(const LinearInputs& inputs, std::int64_t head, std::int64_t begin,
                      std::int64_t count, KeyUses uses) {
  load_rows_of(inputs, head, begin, count, uses);
  load_factors(inputs, head, begin);
  near_rows(uses);
  if (uses.weights || sizes.delta()) {
    for (std::int64_t block = 0; block < blocks(); ++block) {
      const std::int64_t first = block * kBlock, rows = block_tokens(block);
      const auto with_earlier = [&](Matrix near, Matrix to) {
        product<Operand::rows, Into::store>(rows, first, sizes.dim(), near.from_row(first),
                                            earlier_transposed, to.from_row(first));
      };
      if (uses.weights) with_earlier(q_in, weights);
      if (sizes.delta()) with_earlier(k_in, overlaps);
      if (!uses.weights) {
        pairs_of_block<false, true>(block);
      } else if (sizes.delta()) {
        pairs_of_block<true, true>(block);
      } else {
        pairs_of_block<true, false>(block);
      }
      if (block + 1 == blocks()) break;
      for (std::int64_t d = 0; d < sizes.dim(); ++d)
        scaled(first, block_factor.row(block)[d], earlier_transposed.row(d),
               earlier_transposed.row(d));
      transpose(rows, sizes.dim(), k_out.from_row(first), earlier_transposed.from_column(first));
    }
  }
  anchor_at_chunk(uses);
}

/// dq and dk_read, which hold what reads the state, += what reads earlier blocks, all from the
/// block's start. read_sums(block, B) <- the sum over the block of what it read of before block B.
void VectorKeys::reads_backward(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns(), dim = sizes.dim();
  const bool delta = sizes.delta();
  std::fill_n(factor, columns, 1.0f);
  for (std::int64_t block = 0; block < blocks(); ++block) {
    for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t) {
      multiplied(columns, g.dq.row(t), factor, g.dq.row(t));
      if (delta) multiplied(columns, g.dk_read.row(t), factor, g.dk_read.row(t));
    }
    multiplied(columns, factor, block_factor.row(block), factor);
  }
  for (std::int64_t block = 0; block < blocks(); ++block) {
    const std::int64_t first = block * kBlock, rows = block_tokens(block);
    const auto sum_into = [&](float* to) {
      std::fill_n(to, columns, 0.0f);
      for (std::int64_t t = first; t < first + rows; ++t) {
        for (std::int64_t d = 0; d < columns; d += kLanes) {
          const Vector near = hn::Load(kFloats, row_factor.row(t) + d);
          Vector sum = hn::Load(kFloats, to + d);
          sum = hn::MulAdd(hn::Mul(hn::Load(kFloats, q.row(t) + d), near),
                           hn::Load(kFloats, g.dq.row(t) + d), sum);
          if (delta) {
            sum = hn::MulAdd(hn::Mul(hn::Load(kFloats, k.row(t) + d), near),
                             hn::Load(kFloats, g.dk_read.row(t) + d), sum);
          }
          hn::Store(sum, kFloats, to + d);
        }
      }
    };
    for (std::int64_t source = 0; source < block; ++source) {
      sum_into(read_sums.row(block * kBlocks + source));
      const std::int64_t at = source * kBlock;
      const auto add = [&](Matrix gradients, Matrix to) {
        product<Operand::rows, Into::add>(rows, dim, kBlock,
                                          gradients.from_row(first).from_column(at),
                                          earlier.from_row(at), to.from_row(first));
      };
      add(g.dweights, g.dq);
      if (delta) add(g.doverlaps, g.dk_read);
    }
    for (std::int64_t t = 0; t < first; ++t)
      multiplied(columns, earlier.row(t), block_factor.row(block), earlier.row(t));
    for (std::int64_t t = first; t < first + rows; ++t)
      multiplied(columns, k.row(t), column_factor.row(t), earlier.row(t));
  }
}

/// dk, which holds what the state after the chunk has, += what later blocks read, all from the
/// block's end. write_sums(block) <- the sum over the block of what the state after has of it.
void VectorKeys::writes_backward(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns(), dim = sizes.dim();
  const bool delta = sizes.delta();
  std::fill_n(factor, columns, 1.0f);
  for (std::int64_t block = blocks() - 1; block >= 0; --block) {
    float* sum = write_sums.row(block);
    std::fill_n(sum, columns, 0.0f);
    for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t) {
      multiplied(columns, g.dk.row(t), factor, g.dk.row(t));
      multiplied(columns, k.row(t), column_factor.row(t), faded);
      add_product(columns, faded, g.dk.row(t), sum);
    }
    multiplied(columns, factor, block_factor.row(block), factor);
  }
  for (std::int64_t block = blocks() - 1; block >= 0; --block) {
    const std::int64_t first = block * kBlock, rows = block_tokens(block), next = first + rows;
    const auto add = [&](Matrix gradients, Matrix later) {
      product<Operand::columns, Into::add>(rows, dim, tokens - next,
                                           gradients.from_row(next).from_column(first),
                                           later.from_row(next), g.dk.from_row(first));
    };
    if (next < tokens) add(g.dweights, later_q);
    if (next < tokens && delta) add(g.doverlaps, later_k);
    for (std::int64_t t = next; t < tokens; ++t) {
      multiplied(columns, later_q.row(t), block_factor.row(block), later_q.row(t));
      if (delta) multiplied(columns, later_k.row(t), block_factor.row(block), later_k.row(t));
    }
    for (std::int64_t t = first; t < next; ++t) {
      multiplied(columns, q.row(t), row_factor.row(t), later_q.row(t));
      if (delta) multiplied(columns, k.row(t), row_factor.row(t), later_k.row(t));
    }
  }
}

/// across(block) <- what spans the whole block, from before it to after it.
void VectorKeys::decay_between_blocks(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns();
  multiplied(columns, g.overlap, decay_high, g.overlap);
  for (std::int64_t block = 0; block < blocks(); ++block) {
    float* sum = across.row(block);
    std::copy_n(g.overlap, columns, sum);
    for (std::int64_t source = 0; source < block; ++source)
      added(columns, write_sums.row(source), sum);
    for (std::int64_t reader = block + 1; reader < blocks(); ++reader)
      added(columns, read_sums.row(reader * kBlocks + block), sum);
  }
}

/// Gradients of keys j to j + Count - 1 and the tokens from j to `end` of their block, dims from d
/// on.
template <int Count, bool delta>
void VectorKeys::keys_backward(std::int64_t j, std::int64_t end, std::int64_t d,
                               const KeyGradients& g) {
  Vector faded[Count][kBlock];  // key j + c at token j + i
  for (int c = 0; c < Count; ++c) {
    Vector key = hn::Load(kFloats, k.row(j + c) + d);
    faded[c][c] = key;
    for (std::int64_t i = j + c + 1; i < end; ++i) {
      key = hn::Mul(key, hn::Load(kFloats, alpha.row(i) + d));
      faded[c][i - j] = key;
    }
  }
  Vector read[Count];  // of key j + c from token i on, decayed to it
  for (int c = 0; c < Count; ++c) read[c] = hn::Zero(kFloats);
  Vector rates = hn::Zero(kFloats);
  const auto token = [&](auto all, std::int64_t i) {
    const Vector query = hn::Load(kFloats, q.row(i) + d), key = hn::Load(kFloats, k.row(i) + d);
    Vector dq = hn::Load(kFloats, g.dq.row(i) + d), dk = hn::Load(kFloats, g.dk.row(i) + d),
           gate = hn::Load(kFloats, g.dlog_decay.row(i) + d);
#pragma GCC unroll 4
    for (int c = 0; c < Count; ++c) {
      if (!all && c > i - j) break;
      const Vector at = faded[c][i - j], dweight = hn::Set(kFloats, g.dweights.row(i)[j + c]);
      read[c] = hn::MulAdd(dweight, query, hn::Mul(rates, read[c]));
      dq = hn::MulAdd(dweight, at, dq);
      if (delta) {
        const Vector doverlap = hn::Set(kFloats, g.doverlaps.row(i)[j + c]);
        read[c] = hn::MulAdd(doverlap, key, read[c]);
        dk = hn::MulAdd(doverlap, at, dk);
      }
      if (all || c < i - j) gate = hn::MulAdd(at, read[c], gate);
    }
    hn::Store(dq, kFloats, g.dq.row(i) + d);
    if (delta) hn::Store(dk, kFloats, g.dk.row(i) + d);
    hn::Store(gate, kFloats, g.dlog_decay.row(i) + d);
    rates = hn::Load(kFloats, alpha.row(i) + d);
  };
  std::int64_t i = end - 1;
  for (; i >= j + Count; --i) token(std::true_type(), i);
  for (; i >= j; --i) token(std::false_type(), i);
  for (int c = 0; c < Count; ++c) {
    float* dk = g.dk.row(j + c) + d;
    hn::Store(hn::Add(hn::Load(kFloats, dk), read[c]), kFloats, dk);
  }
}

/// Pairs of one block.
template <bool delta>
void VectorKeys::block_backward(std::int64_t block, const KeyGradients& g) {
  const std::int64_t first = block * kBlock, end = first + block_tokens(block);
  for (std::int64_t d = 0; d < sizes.columns(); d += kLanes) {
    std::int64_t j = first;
    for (; j + 4 <= end; j += 4) keys_backward<4, delta>(j, end, d, g);
    for (; j < end; ++j) keys_backward<1, delta>(j, end, d, g);
  }
}

/// From gradients at block borders to those of q and k, and to the gates of each block.
void VectorKeys::finish(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns();
  const bool delta = sizes.delta();
  for (std::int64_t block = 0; block < blocks(); ++block) {
    const std::int64_t first = block * kBlock, end = first + block_tokens(block);
    for (std::int64_t d = 0; d < columns; d += kLanes) {
      Vector sum = hn::Load(kFloats, across.row(block) + d);
      for (std::int64_t t = first; t < end; ++t) {  // what is written before token t
        hn::Store(sum, kFloats, g.dlog_decay.row(t) + d);
        const Vector dk = hn::Mul(hn::Load(kFloats, g.dk.row(t) + d),
                                  hn::Load(kFloats, column_factor.row(t) + d));
        hn::Store(dk, kFloats, g.dk.row(t) + d);
        sum = hn::MulAdd(hn::Load(kFloats, k.row(t) + d), dk, sum);
      }
      sum = hn::Zero(kFloats);
      for (std::int64_t t = end - 1; t >= first; --t) {  // what is read from token t on
        const Vector near = hn::Load(kFloats, row_factor.row(t) + d);
        const Vector dq = hn::Mul(hn::Load(kFloats, g.dq.row(t) + d), near);
        hn::Store(dq, kFloats, g.dq.row(t) + d);
        sum = hn::MulAdd(hn::Load(kFloats, q.row(t) + d), dq, sum);
        if (delta) {
          const Vector dk = hn::Mul(hn::Load(kFloats, g.dk_read.row(t) + d), near);
          hn::Store(hn::Add(hn::Load(kFloats, g.dk.row(t) + d), dk), kFloats, g.dk.row(t) + d);
          sum = hn::MulAdd(hn::Load(kFloats, k.row(t) + d), dk, sum);
        }
        hn::Store(hn::Add(hn::Load(kFloats, g.dlog_decay.row(t) + d), sum), kFloats,
                  g.dlog_decay.row(t) + d);
      }
    }
    delta ? block_backward<true>(block, g) : block_backward<false>(block, g);
  }
}

void VectorKeys::backward(const KeyGradients& g) {
  reads_backward(g);
  writes_backward(g);
  decay_between_blocks(g);
  finish(g);
  for (std::int64_t t = 0; t < tokens; ++t)
    scaled(sizes.columns(), sizes.how.scale, g.dq.row(t), g.dq.row(t));
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

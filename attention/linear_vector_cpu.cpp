// Chunks whose decay is a vector a token: GLA, Kimi Delta Attention.
#include <array>

#include "attention/linear_keys_cpu.h"

namespace longhaul::attention::avx2 {

VectorKeys::VectorKeys(Scratch& scratch, const ChunkSizes& of, bool gradients)
    : ChunkKeys(scratch, of),
      alpha(matrix(scratch, kChunk, of.dim())),
      row_factor(matrix(scratch, kChunk, of.dim())),
      column_factor(matrix(scratch, kChunk, of.dim())),
      block_factor(matrix(scratch, kBlocks, of.dim())),
      earlier_transposed(matrix(scratch, of.dim(), kChunk)),
      ones(scratch.floats(of.columns())),
      faded(scratch.floats(of.columns())),
      earlier(matrix(scratch, gradients ? kChunk : 0, of.dim())),
      later_q(matrix(scratch, gradients ? kChunk : 0, of.dim())),
      later_k(matrix(scratch, gradients && of.delta() ? kChunk : 0, of.dim())),
      read_sums(matrix(scratch, gradients ? kBlocks * kBlocks : 0, of.dim())),
      write_sums(matrix(scratch, gradients ? kBlocks : 0, of.dim())),
      across(matrix(scratch, gradients ? kBlocks : 0, of.dim())) {
  if (ones != nullptr) std::fill_n(ones, of.columns(), 1.0f);
}

void VectorKeys::load_factors(const LinearInputs& inputs, std::int64_t head, std::int64_t begin) {
  const Rows gates = rows_of(inputs.log_decay, head, begin, tokens);
  const std::int64_t columns = sizes.columns();
  load_rows(gates, 1, alpha);
  // Sums of a block and of the chunk, each from zero, 4 dims at a time.
  for (std::int64_t d = 0; d < columns; d += 4) {
    __m256d chunk = _mm256_setzero_pd();
    for (std::int64_t block = 0; block < blocks(); ++block) {
      __m256d sum = _mm256_setzero_pd();
      for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t)
        sum = _mm256_add_pd(sum, _mm256_cvtps_pd(_mm_load_ps(alpha.row(t) + d)));
      _mm_store_ps(block_factor.row(block) + d, _mm256_cvtpd_ps(sum));
      chunk = _mm256_add_pd(chunk, sum);
    }
    alignas(32) std::array<double, 4> sums{};
    _mm256_store_pd(sums.data(), chunk);
    for (std::int64_t i = 0; i < 4; ++i) {
      const TwoFloats decay = exp_of(sums[static_cast<std::size_t>(i)]);
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
  alignas(32) float factor[kTileColumns];
  for (std::int64_t d = 0; d < columns; d += kTileColumns) {
    const auto scale_block = [&](std::int64_t block, Matrix rows) {
      for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t)
        multiplied(kTileColumns, rows.row(t) + d, factor, rows.row(t) + d);
    };
    std::copy_n(block_factor.row(0) + d, kTileColumns, factor);
    for (std::int64_t block = 1; block < blocks(); ++block) {
      if (uses.queries) scale_block(block, q_in);
      if (sizes.delta()) scale_block(block, k_in);
      multiplied(kTileColumns, factor, block_factor.row(block) + d, factor);
    }
    std::copy_n(block_factor.row(blocks() - 1) + d, kTileColumns, factor);
    for (std::int64_t block = blocks() - 2; block >= 0; --block) {
      scale_block(block, k_out);
      multiplied(kTileColumns, factor, block_factor.row(block) + d, factor);
    }
  }
}

/// Weights and overlaps of key j, which `faded` holds decayed to token i - 1 (to i where i is j),
/// and tokens i to i + Count - 1; decays it on.
template <int Count, bool with_weights, bool with_overlaps>
void VectorKeys::pairs_of_key(std::int64_t j, std::int64_t i) {
  __m256 weight[Count], overlap[Count];
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r) weight[r] = overlap[r] = _mm256_setzero_ps();
  const float* rates = i == j ? ones : alpha.row(i);
  for (std::int64_t d = 0; d < sizes.columns(); d += 8) {
    __m256 key = _mm256_load_ps(faded + d);
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r) {
      key = _mm256_mul_ps(key, _mm256_load_ps((r == 0 ? rates : alpha.row(i + r)) + d));
      if (with_weights)
        weight[r] = _mm256_fmadd_ps(_mm256_load_ps(q.row(i + r) + d), key, weight[r]);
      if (with_overlaps)
        overlap[r] = _mm256_fmadd_ps(_mm256_load_ps(k.row(i + r) + d), key, overlap[r]);
    }
    _mm256_store_ps(faded + d, key);
  }
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r) {
    if (with_weights) weights.row(i + r)[j] = sum8(weight[r]);
    if (with_overlaps) overlaps.row(i + r)[j] = sum8(overlap[r]);
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
  alignas(32) float factor[kTileColumns];
  for (std::int64_t d = 0; d < columns; d += kTileColumns) {
    std::fill_n(factor, kTileColumns, 1.0f);
    for (std::int64_t block = 0; block < blocks(); ++block) {
      for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t) {
        multiplied(kTileColumns, g.dq.row(t) + d, factor, g.dq.row(t) + d);
        if (delta) multiplied(kTileColumns, g.dk_read.row(t) + d, factor, g.dk_read.row(t) + d);
      }
      multiplied(kTileColumns, factor, block_factor.row(block) + d, factor);
    }
  }
  for (std::int64_t block = 0; block < blocks(); ++block) {
    const std::int64_t first = block * kBlock, rows = block_tokens(block);
    const auto sum_into = [&](float* to) {
      std::fill_n(to, columns, 0.0f);
      for (std::int64_t t = first; t < first + rows; ++t) {
        for (std::int64_t d = 0; d < columns; d += 8) {
          const __m256 near = _mm256_load_ps(row_factor.row(t) + d);
          __m256 sum = _mm256_load_ps(to + d);
          sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(q.row(t) + d), near),
                                _mm256_load_ps(g.dq.row(t) + d), sum);
          if (delta) {
            sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(k.row(t) + d), near),
                                  _mm256_load_ps(g.dk_read.row(t) + d), sum);
          }
          _mm256_store_ps(to + d, sum);
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
  alignas(32) float factor[kTileColumns];
  for (std::int64_t d = 0; d < columns; d += kTileColumns) {
    std::fill_n(factor, kTileColumns, 1.0f);
    for (std::int64_t block = blocks() - 1; block >= 0; --block) {
      float* sum = write_sums.row(block) + d;
      std::fill_n(sum, kTileColumns, 0.0f);
      for (std::int64_t t = block * kBlock; t < block * kBlock + block_tokens(block); ++t) {
        multiplied(kTileColumns, g.dk.row(t) + d, factor, g.dk.row(t) + d);
        alignas(32) float key[kTileColumns];
        multiplied(kTileColumns, k.row(t) + d, column_factor.row(t) + d, key);
        add_product(kTileColumns, key, g.dk.row(t) + d, sum);
      }
      multiplied(kTileColumns, factor, block_factor.row(block) + d, factor);
    }
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

/// From gradients at block borders to those of q and k, and to the gates of each block.
void VectorKeys::finish(const KeyGradients& g) {
  const std::int64_t columns = sizes.columns();
  const bool delta = sizes.delta();
  for (std::int64_t block = 0; block < blocks(); ++block) {
    const std::int64_t first = block * kBlock, end = first + block_tokens(block);
    for (std::int64_t d = 0; d < columns; d += 8) {
      __m256 sum = _mm256_load_ps(across.row(block) + d);
      for (std::int64_t t = first; t < end; ++t) {  // what is written before token t
        _mm256_store_ps(g.dlog_decay.row(t) + d, sum);
        const __m256 dk = _mm256_mul_ps(_mm256_load_ps(g.dk.row(t) + d),
                                        _mm256_load_ps(column_factor.row(t) + d));
        _mm256_store_ps(g.dk.row(t) + d, dk);
        sum = _mm256_fmadd_ps(_mm256_load_ps(k.row(t) + d), dk, sum);
      }
      sum = _mm256_setzero_ps();
      for (std::int64_t t = end - 1; t >= first; --t) {  // what is read from token t on
        const __m256 near = _mm256_load_ps(row_factor.row(t) + d);
        const __m256 dq = _mm256_mul_ps(_mm256_load_ps(g.dq.row(t) + d), near);
        _mm256_store_ps(g.dq.row(t) + d, dq);
        sum = _mm256_fmadd_ps(_mm256_load_ps(q.row(t) + d), dq, sum);
        if (delta) {
          const __m256 dk = _mm256_mul_ps(_mm256_load_ps(g.dk_read.row(t) + d), near);
          _mm256_store_ps(g.dk.row(t) + d, _mm256_add_ps(_mm256_load_ps(g.dk.row(t) + d), dk));
          sum = _mm256_fmadd_ps(_mm256_load_ps(k.row(t) + d), dk, sum);
        }
        _mm256_store_ps(g.dlog_decay.row(t) + d,
                        _mm256_add_ps(_mm256_load_ps(g.dlog_decay.row(t) + d), sum));
      }
    }
    block_backward(block, g);
  }
}

/// Pairs of one block.
void VectorKeys::block_backward(std::int64_t block, const KeyGradients& g) {
  const std::int64_t first = block * kBlock, end = first + block_tokens(block);
  const bool delta = sizes.delta();
  for (std::int64_t d = 0; d < sizes.columns(); d += 8) {
    for (std::int64_t j = first; j < end; ++j) {
      const __m256 key = _mm256_load_ps(k.row(j) + d);
      __m256 fades[kBlock];
      __m256 fade = _mm256_set1_ps(1);
      for (std::int64_t i = j; i < end; ++i) {
        if (i > j) fade = _mm256_mul_ps(fade, _mm256_load_ps(alpha.row(i) + d));
        fades[i - first] = fade;
      }
      __m256 dk = _mm256_setzero_ps();  // of key j from queries and keys i on
      for (std::int64_t i = end - 1; i >= j; --i) {
        const __m256 faded = _mm256_mul_ps(fades[i - first], key);
        const __m256 dweight = _mm256_broadcast_ss(g.dweights.row(i) + j);
        __m256 read = _mm256_mul_ps(dweight, _mm256_load_ps(q.row(i) + d));
        _mm256_store_ps(g.dq.row(i) + d,
                        _mm256_fmadd_ps(dweight, faded, _mm256_load_ps(g.dq.row(i) + d)));
        if (delta) {
          const __m256 doverlap = _mm256_broadcast_ss(g.doverlaps.row(i) + j);
          read = _mm256_fmadd_ps(doverlap, _mm256_load_ps(k.row(i) + d), read);
          _mm256_store_ps(g.dk.row(i) + d,
                          _mm256_fmadd_ps(doverlap, faded, _mm256_load_ps(g.dk.row(i) + d)));
        }
        dk = _mm256_fmadd_ps(fades[i - first], read, dk);
        if (i == j) break;
        float* gate = g.dlog_decay.row(i) + d;
        _mm256_store_ps(gate, _mm256_fmadd_ps(key, dk, _mm256_load_ps(gate)));
      }
      _mm256_store_ps(g.dk.row(j) + d, _mm256_add_ps(_mm256_load_ps(g.dk.row(j) + d), dk));
    }
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

}  // namespace longhaul::attention::avx2

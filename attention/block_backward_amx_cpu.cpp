// Blocked softmax backward of bfloat16 on AMX tiles: block_backward_cpu.h over kernels that make
// scores the other way round, S^T = K Q^T and dP^T = V dO^T: LSE and delta are whole vectors, P^T
// and dS^T are what dV = P^T dO and dK = dS^T Q start from, and dQ^T = K^T dS^T takes dS^T with its
// rows in pairs. 32 keys are a strip; its products, its weights and its sums run beside those of
// its neighbours.

#include <algorithm>

#include "attention/block_backward_cpu.h"
#include "attention/block_impl.h"
#include "attention/softmax_amx_cpu.h"
#include "attention/tiles.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16")

namespace longhaul::attention::detail {
namespace {

using namespace amx;

/// Keys of a strip and rows of a step: sums are two tiles by two.
constexpr std::int64_t kStep = 32;

class BackwardKernel {
 public:
  /// Rows of a tile of the plan, over which dK and dV are summed in tile registers.
  static constexpr std::int64_t kQBlock = 128;
  /// Keys of an item, over which dQ is: dK, dV and what is packed stay in the second-level cache.
  static constexpr std::int64_t kKBlock = 256;
  using Registers = Tiles;

  BackwardKernel(const BlockShape& call_shape, const Scoring& scoring)
      : shape(call_shape), scale(scoring.scale) {}

  std::int64_t dim() const { return whole(shape.dim); }
  std::int64_t value_dim() const { return whole(shape.value_dim); }

  /// Keys [key, key + 32) of the block and the rows that see some of them, in whole steps.
  struct Strip {
    std::int64_t key, begin, end;
    std::int64_t rows() const { return end - begin; }
  };

  struct ThreadScratch {
    Bits *k_rows, *v_rows, *k_columns;                            // of the key block: A
    float *dk, *dv;                                               // [kKBlock, ...]
    Bits *q_transposed, *dout_transposed, *q_pairs, *dout_pairs;  // of the row block: B
    float *lse_high, *lse_low, *delta;                            // [kQBlock]
    float *dq, *dq_corner;                                        // [kQBlock, depth]; [32, 32]
    float *s[2], *dp[2];                                          // [kStep, kQBlock]
    Bits *p[2], *ds[2];                                           // of a strip; of the next
    Bits* ds_pairs;                                               // B[kKBlock, kQBlock]
    std::uint32_t* seen;  // [kKBlock / 32][kQBlock]: which of 32 keys a row sees
    TileRows tile;
    Strip strips[kKBlock / kStep];
    Span hulls[kQBlock / kStep];
    bool q_finite, dout_finite, k_finite, masked;
    ThreadScratch(Scratch& m, const BackwardKernel& kernel, const TilePlan& tiles)
        : k_rows(m.array<Bits>(kKBlock * kernel.dim())),
          v_rows(m.array<Bits>(kKBlock * kernel.value_dim())),
          k_columns(m.array<Bits>(kKBlock * kernel.dim())),
          dk(m.floats(kKBlock * kernel.dim())),
          dv(m.floats(kKBlock * kernel.value_dim())),
          q_transposed(m.array<Bits>(kQBlock * kernel.dim())),
          dout_transposed(m.array<Bits>(kQBlock * kernel.value_dim())),
          q_pairs(m.array<Bits>(kQBlock * kernel.dim())),
          dout_pairs(m.array<Bits>(kQBlock * kernel.value_dim())),
          lse_high(m.floats(kQBlock)),
          lse_low(m.floats(kQBlock)),
          delta(m.floats(kQBlock)),
          dq(m.floats(kQBlock * kernel.dim())),
          dq_corner(m.floats(kStep * kStep)),
          s{m.floats(kStep * kQBlock), m.floats(kStep * kQBlock)},
          dp{m.floats(kStep * kQBlock), m.floats(kStep * kQBlock)},
          p{m.array<Bits>(kStep * kQBlock), m.array<Bits>(kStep * kQBlock)},
          ds{m.array<Bits>(kStep * kQBlock), m.array<Bits>(kStep * kQBlock)},
          ds_pairs(m.array<Bits>(kKBlock * kQBlock)),
          seen(m.array<std::uint32_t>(kKBlock / 32 * kQBlock)),
          tile(m.array<std::int32_t>(kQBlock), m.array<std::int32_t>(kQBlock),
               m.array<Span>(tiles.most_spans())) {}
  };

  void start(const BlockBackwardInputs& in, const HeadBlock& keys, ThreadScratch& s) const {
    const HeadRows k = rows_of(in.k, keys.head, keys.begin, keys.count),
                   v = rows_of(in.v, keys.head, keys.begin, keys.count);
    pack_rows(k, whole(keys.count), dim(), s.k_rows);
    pack_rows(v, whole(keys.count), value_dim(), s.v_rows);
    s.k_finite = pack_columns(k, kKBlock, dim(), s.k_columns);
    std::fill_n(s.dk, whole(keys.count) * dim(), 0.0f);
    std::fill_n(s.dv, whole(keys.count) * value_dim(), 0.0f);
  }

  void add(const BlockBackwardInputs& in, const HeadBlock& keys, const HeadBlock& rows,
           ThreadScratch& s) const {
    const HeadRows q = rows_of(in.q, rows.head, rows.begin, rows.count),
                   dout = rows_of(in.dout, rows.head, rows.begin, rows.count);
    pack_row_block(in, rows, q, dout, s);
    tile_gradients(rows_of(in.k, keys.head, keys.begin, keys.count), q, dout, s);
  }

  /// Scores were of unscaled queries.
  void finish(const HeadBlock& keys, ThreadScratch& s) const {
    for (std::int64_t i = 0; i < keys.count * dim(); ++i) s.dk[i] *= scale;
  }

 private:
  /// Rows whose global LSE is -inf contribute nothing: they are hidden.
  void pack_row_block(const BlockBackwardInputs& in, const HeadBlock& of, const HeadRows& q,
                      const HeadRows& dout, ThreadScratch& s) const {
    const std::int64_t rows = of.count;
    pack_transposed(q, whole(rows), dim(), s.q_transposed);
    pack_transposed(dout, whole(rows), value_dim(), s.dout_transposed);
    s.q_finite = pack_pairs(q, kQBlock, dim(), s.q_pairs);
    s.dout_finite = pack_pairs(dout, kQBlock, value_dim(), s.dout_pairs);
    for (std::int64_t row = 0; row < whole(rows); ++row) {
      const std::int64_t at = of.begin + row;
      Lse lse{kMinusInfinity, 0};
      if (row < rows) {
        lse = Lse::load(in.lse.as<float>() + at * in.lse.stride(0) + of.head * in.lse.stride(1));
        if (lse.high == kMinusInfinity) s.tile.hide(row);
      }
      const bool there = lse.high != kMinusInfinity;
      s.lse_high[row] = there ? lse.high : 0;
      s.lse_low[row] = there ? lse.low : 0;
      s.delta[row] =
          there ? in.delta.as<float>()[at * in.delta.stride(0) + of.head * in.delta.stride(1)] : 0;
    }
  }

  /// dq <- the tile's share; dk, dv += theirs, dk not yet scaled.
  void tile_gradients(const HeadRows& k, const HeadRows& q, const HeadRows& dout,
                      ThreadScratch& s) const {
    const std::int64_t strips = find_strips(s);
    for (std::int64_t step = 0; strips > 0 && step < strips + 2; ++step)
      advance(step, strips, q, dout, s);
    query_gradients(s);
    if (s.k_finite) return;
    each_not_finite(k, [&](std::int64_t key, std::int64_t d, float x) {
      for (std::int64_t row = 0; row < s.tile.rows(); ++row) {
        if (!sees(s, row, key)) continue;
        const Bits ds = s.ds_pairs[row / 16 * 16 * kKBlock + key / 2 * 32 + row % 16 * 2 + key % 2];
        s.dq[row * dim() + d] += scale * widened(ds) * x;
      }
    });
  }

  /// Which keys rows see, and which strips there are.
  static std::int64_t find_strips(ThreadScratch& s) {
    const TileRows& tile = s.tile;
    const std::int64_t rows = tile.rows();
    for (std::int64_t row = 0; row < rows; row += kStep)
      s.hulls[row / kStep] = tile.hull(row, std::min(kStep, rows - row));
    s.masked = !tile.full() || rows % kStep != 0 || tile.keys() % kStep != 0;
    if (s.masked) mark_seen(s);
    std::int64_t strips = 0;
    for (std::int64_t key = 0; key < tile.keys(); key += kStep) {
      Strip strip{key, kQBlock, 0};
      for (std::int64_t row = 0; row < rows; row += kStep) {
        const Span hull = s.hulls[row / kStep];
        if (hull.begin >= key + kStep || hull.end <= key) continue;
        strip.begin = std::min(strip.begin, row);
        strip.end = row + kStep;
      }
      if (strip.rows() > 0) s.strips[strips++] = strip;
    }
    return strips;
  }

  static void mark_seen(ThreadScratch& s) {
    const TileRows& tile = s.tile;
    std::fill_n(s.seen, kKBlock / 32 * kQBlock, 0U);
    for (std::int64_t row = 0; row < tile.rows(); ++row) {
      for (const Span& span : tile.spans(row)) {
        for (std::int64_t word = span.begin / 32; word * 32 < span.end; ++word) {
          const std::int64_t from = std::max<std::int64_t>(0, span.begin - word * 32),
                             to = std::min<std::int64_t>(32, span.end - word * 32);
          s.seen[word * kQBlock + row] |=
              static_cast<std::uint32_t>((std::uint64_t{1} << to) - (std::uint64_t{1} << from));
        }
      }
    }
  }
  static bool sees(const ThreadScratch& s, std::int64_t row, std::int64_t key) {
    return !s.masked || (s.seen[key / 32 * kQBlock + row] >> key % 32 & 1) != 0;
  }

  /// Step `i` of the pipeline over `count` strips: strip i is multiplied, i - 1 weighed and i - 2
  /// summed.
  void advance(std::int64_t i, std::int64_t count, const HeadRows& q, const HeadRows& dout,
               ThreadScratch& s) const {
    const auto strip = [&](std::int64_t at) {
      return at >= 0 && at < count ? s.strips[at] : Strip{};
    };
    const Strip multiplied = strip(i), weighed = strip(i - 1), summed = strip(i - 2);
    const std::int64_t all = (multiplied.rows() + summed.rows()) / kStep * (dim() + value_dim()) /
                             kStep,
                       parts = weighed.rows() / kStep * (kStep / 2);
    std::int64_t done = 0, part = 0;
    const std::int64_t steps = weighed.rows() / kStep, mine = (i - 1) & 1;
    const auto weigh_next = [&] {
      const std::int64_t row = weighed.begin + part % steps * kStep, pair = part / steps;
      ++part;
      (s.masked ? weigh<true> : weigh<false>)(weighed.key, pair * 2, row, scale, mine, s);
    };
    const auto between = [&] {
      ++done;
      while (part < parts && part * all < done * parts) weigh_next();
    };
    products(multiplied, i & 1, s, between);
    sums(summed, i & 1, s, between);
    if (!s.q_finite || !s.dout_finite) sum_the_rest(summed, i & 1, q, dout, s);
    while (part < parts) weigh_next();
  }

  /// S^T = K Q^T and dP^T = V dO^T of a strip.
  template <class Between>
  void products(const Strip& strip, std::int64_t which, ThreadScratch& s,
                const Between& between) const {
    const std::int64_t depth = dim(), width = value_dim();
    for (std::int64_t row = strip.begin; row < strip.end; row += kStep) {
      const Bits *const q = s.q_transposed + row * depth, *const dout =
                                                              s.dout_transposed + row * width;
      multiply<Into::store>(s.k_rows + strip.key * depth, depth, q, q + kTileColumns * depth, depth,
                            s.s[which] + row, kQBlock, between);
      multiply<Into::store>(s.v_rows + strip.key * width, width, dout, dout + kTileColumns * width,
                            width, s.dp[which] + row, kQBlock, between);
    }
  }

  /// P^T and dS^T of two keys of a strip and 32 rows.
  template <bool masked>
  static void weigh(std::int64_t strip_key, std::int64_t key, std::int64_t row, float scale,
                    std::int64_t which, ThreadScratch& s) {
    const __m512 by = _mm512_set1_ps(scale);
    __m512i ds[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const std::int64_t at = (key + i) * kQBlock + row;
      const __m512i bit = _mm512_set1_epi32(static_cast<int>(1U << (key + i)));
      Gradients of[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const std::int64_t lanes = row + 16 * half;
        const __mmask16 seen =
            masked ? _mm512_test_epi32_mask(
                         _mm512_load_si512(s.seen + strip_key / 32 * kQBlock + lanes), bit)
                   : __mmask16{0xffff};
        of[half] = gradients(
            {seen, _mm512_load_ps(s.s[which] + at + 16 * half),
             _mm512_load_ps(s.dp[which] + at + 16 * half), _mm512_load_ps(s.lse_high + lanes),
             _mm512_load_ps(s.lse_low + lanes), _mm512_load_ps(s.delta + lanes)},
            by);
      }
      _mm512_store_si512(s.p[which] + at, rounded(of[0].p, of[1].p));
      ds[i] = rounded(of[0].ds, of[1].ds);
      _mm512_store_si512(s.ds[which] + at, ds[i]);
    }
    const Pairs pairs = interleaved(ds[0], ds[1]);
    Bits* const to = s.ds_pairs + row * kKBlock + (strip_key + key) * kTileColumns;
    _mm512_store_si512(to, pairs.low);
    _mm512_store_si512(to + kTileColumns * kKBlock, pairs.high);
  }

  /// dV += P^T dO and dK += dS^T Q of a strip.
  template <class Between>
  void sums(const Strip& strip, std::int64_t which, ThreadScratch& s,
            const Between& between) const {
    const auto add = [&](const Bits* weights, const Bits* pairs, float* to, std::int64_t width) {
      for (std::int64_t d = 0; d < width; d += kStep) {
        const Bits* const from = pairs + d * kQBlock + strip.begin * kTileColumns;
        multiply<Into::add>(weights + strip.begin, kQBlock, from, from + kTileColumns * kQBlock,
                            strip.rows(), to + strip.key * width + d, width, between);
      }
    };
    if (strip.rows() == 0) return;
    add(s.p[which], s.dout_pairs, s.dv, value_dim());
    add(s.ds[which], s.q_pairs, s.dk, dim());
  }

  /// Adds what of q and dout is not finite, and was packed as zeros, to the keys that are seen.
  void sum_the_rest(const Strip& strip, std::int64_t which, const HeadRows& q, const HeadRows& dout,
                    ThreadScratch& s) const {
    const std::int64_t keys = std::min(kStep, s.tile.keys() - strip.key);
    const auto add = [&](const HeadRows& rows, const Bits* weights, float* to, std::int64_t width) {
      each_not_finite(rows, [&](std::int64_t row, std::int64_t d, float x) {
        for (std::int64_t key = 0; key < keys; ++key) {
          if (sees(s, row, strip.key + key))
            to[(strip.key + key) * width + d] += widened(weights[key * kQBlock + row]) * x;
        }
      });
    };
    if (strip.rows() == 0) return;
    add(dout, s.p[which], s.dv, value_dim());
    add(q, s.ds[which], s.dk, dim());
  }

  template <class Visit>
  static void each_not_finite(const HeadRows& rows, const Visit& visit) {
    for (std::int64_t row = 0; row < rows.count; ++row) {
      for (std::int64_t d = 0; d < rows.dim; ++d) {
        const Bits x = row_of(rows, row)[d];
        if (!is_finite(x)) visit(row, d, widened(x));
      }
    }
  }

  /// dq[rows, depth] = scale dS K, by way of dQ^T = K^T dS^T.
  void query_gradients(ThreadScratch& s) const {
    const auto nothing = [] {};
    for (std::int64_t row = 0; row < s.tile.rows(); row += kStep) {
      const Span hull = s.hulls[row / kStep];
      float* const dq = s.dq + row * dim();
      if (hull.empty()) {
        std::fill_n(dq, kStep * dim(), 0.0f);
        continue;
      }
      const std::int64_t begin = hull.begin / kStep * kStep, keys = whole(hull.end) - begin;
      const Bits* const ds = s.ds_pairs + row * kKBlock + begin * kTileColumns;
      for (std::int64_t d = 0; d < dim(); d += kStep) {
        multiply<Into::store>(s.k_columns + d * kKBlock + begin, kKBlock, ds,
                              ds + kTileColumns * kKBlock, keys, s.dq_corner, kStep, nothing);
        for (const std::int64_t i : {0, 16}) {
          for (const std::int64_t j : {0, 16})
            put_transposed(s.dq_corner + i * kStep + j, dq + j * dim() + d + i);
        }
      }
    }
  }

  /// to[16, depth] = scale from[16, 32]^T, 16 columns of each.
  void put_transposed(const float* from, float* to) const {
    __m512i block[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) block[i] = _mm512_load_si512(from + i * kStep);
    transpose16(block);
    const __m512 by = _mm512_set1_ps(scale);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      _mm512_store_ps(to + i * dim(), _mm512_mul_ps(_mm512_castsi512_ps(block[i]), by));
  }

  const BlockShape shape;
  const float scale;
};

}  // namespace
}  // namespace longhaul::attention::detail

#pragma GCC pop_options

namespace longhaul::attention::detail {

std::shared_ptr<const BlockPlan> amx_plan_backward(const std::vector<Slice>& bands,
                                                   const BlockShape& shape, const Scoring& scoring,
                                                   const BlockPlace& place) {
  return std::make_shared<const BackwardPlan<BackwardKernel>>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

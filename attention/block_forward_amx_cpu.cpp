// Blocked softmax forward of bfloat16 on AMX tiles: block_forward_cpu.h over kernels that take
// an item's keys block by block, 32 rows at a time, in stages: scores, weights, sums. The three run
// together, on different keys or rows: the vector units weigh a row of one stage after each four
// products of tiles of the stages before and behind it.

#include <algorithm>
#include <cmath>

#include "attention/block_forward_cpu.h"
#include "attention/block_impl.h"
#include "attention/put_rows_cpu.h"
#include "attention/softmax_amx_cpu.h"
#include "attention/tiles.h"
#include "runtime/cpu_level.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16")

namespace longhaul::attention::detail {
namespace {

using namespace amx;

/// Rows of a stage and keys of a step: sums are two tiles by two.
constexpr std::int64_t kStep = 32;

class ForwardKernel {
 public:
  /// Rows of an item, which share a pass over packed keys from the second-level cache.
  static constexpr std::int64_t kQBlock = 128;
  /// Keys of a stage: scores of two stages and weights of two, 32 rows each, are 48 KiB.
  static constexpr std::int64_t kKBlock = 128;
  using Packed = Bits;
  using Item = ForwardItem<Packed>;
  using Registers = Tiles;

  ForwardKernel(const BlockShape& call_shape, const Scoring& scoring)
      : shape(call_shape), exponent(scoring.scale) {}

  std::int64_t block_elements() const { return kKBlock * (depth() + width()); }

  /// What an item has made of its keys: sums of weighted values, not yet divided.
  struct Partial {
    float* out;  // [kQBlock, width]
    RowState* rows;
    Partial(Scratch& scratch, const ForwardKernel& kernel)
        : out(scratch.floats(kQBlock * kernel.width())), rows(scratch.array<RowState>(kQBlock)) {}
  };

  /// 32 rows and a block of keys.
  struct Stage {
    const Bits *keys, *values;  // packed
    bool finite;                // whether the values all are
    std::int64_t first_key;     // of the view
    std::int64_t row, rows;     // from the item's first
    std::int64_t begin, end;    // keys, whole steps
    bool masked;                // a row does not see all of these
    __mmask16 seen[kStep][kKBlock / 16];
    float factor[kStep];  // of what was summed before
  };

  struct ThreadScratch {
    Bits* q;           // [kQBlock, depth]
    float* scores[2];  // [kStep, kKBlock] of a stage; of the next one
    Bits* weights[2];
    Partial partial;
    Stage* stages;  // a ring of three
    TileRows tile;
    ThreadScratch(Scratch& scratch, const ForwardKernel& kernel, const TilePlan& tiles)
        : q(scratch.array<Bits>(kQBlock * kernel.depth())),
          scores{scratch.floats(kStep * kKBlock), scratch.floats(kStep * kKBlock)},
          weights{scratch.array<Bits>(kStep * kKBlock), scratch.array<Bits>(kStep * kKBlock)},
          partial(scratch, kernel),
          stages(scratch.array<Stage>(3)),
          tile(scratch.array<std::int32_t>(kQBlock), scratch.array<std::int32_t>(kQBlock),
               scratch.array<Span>(tiles.most_spans())) {}
  };

  bool pack(const BlockForwardTensors& t, std::int64_t kv_head, std::int64_t first_key,
            std::int64_t keys, Bits* to) const {
    pack_transposed(rows_of(t.k, kv_head, first_key, keys), kKBlock, depth(), to);
    return pack_pairs(rows_of(t.v, kv_head, first_key, keys), kKBlock, width(),
                      to + kKBlock * depth());
  }

  void clear(const Partial& partial, std::int64_t rows) const {
    std::fill_n(partial.out, rows * width(), 0.0f);
    std::fill_n(partial.rows, rows, RowState{{}, kMinusInfinity});
  }

  void attend(const Item& item, ThreadScratch& s) const {
    const std::int64_t rows = item.tiles.q_count(item.part.qb);
    pack_rows(rows_of(item.t.q, item.head, item.part.qb * kQBlock, rows), whole(rows), depth(),
              s.q);
    std::int64_t stages = 0;
    item.each_tile(s.tile, [&](std::int64_t kb) {
      for (std::int64_t row = 0; row < s.tile.rows(); row += kStep) {
        Stage& stage = s.stages[stages % 3];
        if (!describe(row, s.tile, stage)) continue;
        stage.keys = item.packed + kb * block_elements();
        stage.values = stage.keys + kKBlock * depth();
        stage.finite = item.finite[kb] != 0;
        stage.first_key = kb * kKBlock;
        ++stages;
        advance(stages - 1, stages, item, s);
      }
    });
    for (std::int64_t step = stages; step < stages + 2; ++step) advance(step, stages, item, s);
  }

  void merge(const Partial& added, const Partial& into, std::int64_t rows) const {
    for (std::int64_t row = 0; row < rows; ++row) add_part(added, into, row);
  }

  void write(const Partial& partial, const BlockForwardTensors& t, std::int64_t first_row,
             std::int64_t rows, std::int64_t head) const {
    for (std::int64_t row = 0; row < rows; ++row) {
      const RowState& state = partial.rows[row];
      const float sum = _mm512_reduce_add_ps(_mm512_load_ps(state.sums));
      Lse lse{kMinusInfinity, 0};
      if (sum != 0) {  // a largest weight is at least 1; of NaN alone there is a NaN
        lse = Lse::of(static_cast<double>(exponent.scale) * static_cast<double>(state.reference) +
                      std::log(static_cast<double>(sum)));
      }
      put_row({partial.out + row * width(), sum, lse}, t, first_row + row, head);
    }
  }

 private:
  static constexpr std::int64_t kVectors = kKBlock / 16;

  std::int64_t depth() const { return whole(shape.dim); }
  std::int64_t width() const { return whole(shape.value_dim); }

  /// Which of the tile's keys 32 of its rows see. Returns whether any.
  static bool describe(std::int64_t row, const TileRows& tile, Stage& stage) {
    stage.row = row;
    stage.rows = std::min(kStep, tile.rows() - row);
    const Span hull = tile.hull(row, stage.rows);
    if (hull.empty()) return false;
    stage.begin = hull.begin / kStep * kStep;
    stage.end = whole(hull.end);
    stage.masked = !tile.full() || stage.end > tile.keys();
    if (!stage.masked) return true;
    for (std::int64_t r = 0; r < stage.rows; ++r) {
      std::fill_n(stage.seen[r], kVectors, __mmask16{0});
      for (const Span& span : tile.spans(row + r)) {
        for (std::int64_t i = span.begin / 16; i * 16 < span.end; ++i) {
          const std::int64_t from = std::max<std::int64_t>(0, span.begin - i * 16),
                             to = std::min<std::int64_t>(16, span.end - i * 16);
          stage.seen[r][i] = static_cast<__mmask16>(stage.seen[r][i] | ((1U << to) - (1U << from)));
        }
      }
    }
    return true;
  }

  /// Step `i` of the pipeline over the first `count` stages: stage i is scored, i - 1 weighed and
  /// i - 2 summed.
  void advance(std::int64_t i, std::int64_t count, const Item& item, ThreadScratch& s) const {
    const auto stage = [&](std::int64_t at) {
      return at >= 0 && at < count ? s.stages + at % 3 : nullptr;
    };
    Stage *const scored = stage(i), *const weighed = stage(i - 1), *const summed = stage(i - 2);
    const auto products = [](const Stage* of, std::int64_t other_steps) {
      return of == nullptr ? 0 : (of->end - of->begin) / kStep * other_steps;
    };
    const std::int64_t all = products(scored, depth() / kStep) + products(summed, width() / kStep),
                       rows = weighed == nullptr ? 0 : weighed->rows;
    std::int64_t done = 0, row = 0;
    const auto weigh_next = [&] {
      weigh(row++, *weighed, s.scores[(i - 1) & 1], s.partial, s.weights[(i - 1) & 1]);
    };
    const auto between = [&] {
      ++done;
      while (row < rows && row * all < done * rows) weigh_next();
    };
    if (scored != nullptr) score(*scored, s.q, s.scores[i & 1], between);
    if (summed != nullptr) {
      sum(*summed, s.weights[i & 1], s.partial.out, between);
      if (!summed->finite) sum_the_rest(*summed, item, s.weights[i & 1], s.partial.out);
    }
    while (row < rows) weigh_next();
  }

  /// scores[32, keys] = Q K^T.
  template <class Between>
  void score(const Stage& stage, const Bits* q, float* scores, const Between& between) const {
    for (std::int64_t key = stage.begin; key < stage.end; key += kStep) {
      const Bits* const keys = stage.keys + key * depth();
      multiply<Into::store>(q + stage.row * depth(), depth(), keys, keys + kTileColumns * depth(),
                            depth(), scores + key, kKBlock, between);
    }
  }

  /// A row's weights from its scores.
  void weigh(std::int64_t row, Stage& stage, const float* scores, const Partial& partial,
             Bits* weights) const {
    const std::int64_t at = row * kKBlock + stage.begin, vectors = (stage.end - stage.begin) / 16;
    stage.factor[row] =
        (stage.masked ? weigh_row<true>
                      : weigh_row<false>)(scores + at, vectors, stage.seen[row] + stage.begin / 16,
                                          exponent, partial.rows[stage.row + row], weights + at);
  }

  /// out[32, width] = factor out + P V.
  template <class Between>
  void sum(const Stage& stage, const Bits* weights, float* out, const Between& between) const {
    out += stage.row * width();
    for (std::int64_t row = 0; row < stage.rows; ++row) {
      if (stage.factor[row] != 1) scale_row(stage.factor[row], out + row * width(), width());
    }
    for (std::int64_t d = 0; d < width(); d += kStep) {
      const Bits* const values = stage.values + d * kKBlock + stage.begin * kTileColumns;
      multiply<Into::add>(weights + stage.begin, kKBlock, values, values + kTileColumns * kKBlock,
                          stage.end - stage.begin, out + d, width(), between);
    }
  }

  static void scale_row(float factor, float* row, std::int64_t width) {
    const __m512 by = _mm512_set1_ps(factor);
    for (std::int64_t d = 0; d < width; d += 16)
      _mm512_store_ps(row + d, _mm512_mul_ps(_mm512_load_ps(row + d), by));
  }

  /// Adds the values that are not finite, which were packed as zeros, to the rows that see them.
  void sum_the_rest(const Stage& stage, const Item& item, const Bits* weights, float* out) const {
    const std::int64_t end = std::min(stage.end, shape.k_rows - stage.first_key);
    const HeadRows values = rows_of(item.t.v, item.kv_head, stage.first_key, end);
    for (std::int64_t key = stage.begin; key < end; ++key) {
      for (std::int64_t d = 0; d < shape.value_dim; ++d) {
        const Bits value = row_of(values, key)[d];
        if (is_finite(value)) continue;
        for (std::int64_t row = 0; row < stage.rows; ++row) {
          if (stage.masked && (stage.seen[row][key / 16] >> key % 16 & 1) == 0) continue;
          out[(stage.row + row) * width() + d] +=
              widened(weights[row * kKBlock + key]) * widened(value);
        }
      }
    }
  }

  void add_part(const Partial& added, const Partial& into, std::int64_t row) const {
    const float largest = std::max(added.rows[row].reference, into.rows[row].reference);
    for (const Partial* part : {&added, &into}) {
      RowState& state = part->rows[row];
      // Of what has seen nothing only a NaN is left.
      const float factor = state.reference == largest ? 1
                           : state.reference == kMinusInfinity
                               ? 0
                               : std::exp2((state.reference - largest) * exponent.per_unit);
      scale_row(factor, state.sums, 16);
      scale_row(factor, part->out + row * width(), width());
      state.reference = largest;
    }
    add_row(added.rows[row].sums, into.rows[row].sums, 16);
    add_row(added.out + row * width(), into.out + row * width(), width());
  }

  static void add_row(const float* from, float* to, std::int64_t width) {
    for (std::int64_t d = 0; d < width; d += 16)
      _mm512_store_ps(to + d, _mm512_add_ps(_mm512_load_ps(to + d), _mm512_load_ps(from + d)));
  }

  const BlockShape shape;
  const Exponent exponent;
};

}  // namespace
}  // namespace longhaul::attention::detail

#pragma GCC pop_options

namespace longhaul::attention::detail {

bool amx_computes(const BlockShape& shape, const Scoring& scoring) {
  return runtime::cpu_level() == runtime::CpuLevel::amx &&
         shape.activation == runtime::DType::bfloat16 && scoring.weighting == Weighting::softmax &&
         scoring.softcap == 0 && scoring.scale >= 0;
}

std::shared_ptr<const BlockPlan> amx_plan_forward(const std::vector<Slice>& bands,
                                                  const BlockShape& shape, const Scoring& scoring,
                                                  const BlockPlace& place) {
  return std::make_shared<const ForwardPlan<ForwardKernel>>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

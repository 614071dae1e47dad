// Blocked softmax forward of bfloat16 on AMX tiles. K and V are packed once a key/value head and
// shared by all its query heads and rows, as in block_forward_cpu.cpp. A work item is a query head
// and a block of rows, or a part of their keys where there are few; it takes the keys block by
// block, 32 rows at a time, in stages: scores, weights, sums. The three run together, on different
// keys or rows: the vector units weigh a row of one stage after each four products of tiles of the
// stages before and behind it.

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "attention/block_impl.h"
#include "attention/put_rows_cpu.h"
#include "attention/row_parts.h"
#include "attention/scratch_cpu.h"
#include "attention/softmax_amx_cpu.h"
#include "attention/tiles.h"
#include "runtime/cpu_level.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16")

namespace longhaul::attention::detail {
namespace {

using namespace amx;
using runtime::Stream;

/// Rows of an item, which share a pass over packed keys from the second-level cache.
constexpr std::int64_t kQBlock = 128;
/// Keys of a stage: scores of two stages and weights of two, 32 rows each, are 48 KiB.
constexpr std::int64_t kKBlock = 128;
/// Rows of a stage and keys of a step: sums are two tiles by two.
constexpr std::int64_t kStep = 32;
constexpr std::int64_t kVectors = kKBlock / 16;
/// Packed keys and values held at once, if more than one head.
constexpr std::int64_t kPackBytes = 64 << 20;

/// Sizes of a call's parts, from its shape.
struct Geometry {
  BlockShape s;
  std::int64_t depth() const { return whole(s.dim); }
  std::int64_t width() const { return whole(s.value_dim); }
  std::int64_t k_blocks() const { return (s.k_rows + kKBlock - 1) / kKBlock; }
  /// Elements of one packed block of keys and its values.
  std::int64_t block_elements() const { return kKBlock * (depth() + width()); }
  /// Key/value heads whose packed keys and values are held at once.
  std::int64_t heads_at_once() const {
    const std::int64_t head_bytes = k_blocks() * block_elements() * 2;
    return std::clamp<std::int64_t>(kPackBytes / std::max<std::int64_t>(1, head_bytes), 1,
                                    std::max<std::int64_t>(1, s.kv_heads));
  }
  /// Query heads that share a key/value head.
  std::int64_t group() const { return s.kv_heads == 0 ? 0 : s.heads / s.kv_heads; }
};

/// What an item has made of its keys: sums of weighted values, not yet divided.
struct Partial {
  float* out;  // [kQBlock, width]
  RowState* rows;
  Partial(Scratch& scratch, const Geometry& g)
      : out(scratch.floats(kQBlock * g.width())), rows(scratch.array<RowState>(kQBlock)) {}
};

/// 32 rows and a block of keys.
struct Stage {
  const Bits *keys, *values;  // packed
  bool finite;                // whether the values all are
  std::int64_t key_block;     // of the view
  std::int64_t row, rows;     // from the item's first
  std::int64_t begin, end;    // keys, whole steps
  bool masked;                // a row does not see all of these
  __mmask16 seen[kStep][kVectors];
  float factor[kStep];  // of what was summed before
};

struct ThreadScratch {
  Bits* q;           // [kQBlock, depth]
  float* scores[2];  // [kStep, kKBlock] of a stage; of the next one
  Bits* weights[2];
  Partial partial;
  Stage* stages;  // a ring of three
  TileRows tile;
  ThreadScratch(Scratch& scratch, const Geometry& g, const TilePlan& tiles)
      : q(scratch.array<Bits>(kQBlock * g.depth())),
        scores{scratch.floats(kStep * kKBlock), scratch.floats(kStep * kKBlock)},
        weights{scratch.array<Bits>(kStep * kKBlock), scratch.array<Bits>(kStep * kKBlock)},
        partial(scratch, g),
        stages(scratch.array<Stage>(3)),
        tile(scratch.array<std::int32_t>(kQBlock), scratch.array<std::int32_t>(kQBlock),
             scratch.array<Span>(tiles.most_spans())) {}
};

class ForwardPlan final : public BlockPlan {
 public:
  ForwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
              const BlockPlace& place)
      : BlockPlan(Pass::forward, shape, scoring, place),
        geometry{shape},
        tiles(bands, shape.q_rows, shape.k_rows, kQBlock, kKBlock),
        rows(tiles, shape.heads) {
    thread_bytes =
        carved_bytes([this](Scratch& scratch) { ThreadScratch(scratch, geometry, tiles); });
    partial_bytes = carved_bytes([this](Scratch& scratch) { Partial(scratch, geometry); });
  }
  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  struct Memory {
    Bits* packed;          // keys and values, [heads at once][key blocks]
    std::uint8_t* finite;  // whether a block's values all are
    std::byte* partials;   // of the parts of rows, [heads at once x group][slots]
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    const std::int64_t blocks = geometry.heads_at_once() * geometry.k_blocks();
    const std::int64_t parts = geometry.heads_at_once() * geometry.group() * rows.slots();
    return {scratch.array<Bits>(blocks * geometry.block_elements()),
            scratch.array<std::uint8_t>(blocks), scratch.array<std::byte>(parts * partial_bytes),
            scratch.array<std::byte>(place().threads * thread_bytes)};
  }

  const Geometry geometry;
  const TilePlan tiles;
  const RowParts rows;
  std::int64_t thread_bytes = 0, partial_bytes = 0;

  using BlockPlan::compute;
  void compute(const BlockForwardTensors& tensors, std::byte* scratch) const override;

 protected:
  void run_forward(const BlockForwardTensors& tensors, const BlockMemory& memory,
                   const Stream& stream) const override;
};

/// One call.
class Forward {
 public:
  Forward(const ForwardPlan& call_plan, const BlockForwardTensors& tensors, std::byte* scratch)
      : plan(call_plan), t(tensors), g(call_plan.geometry), exponent(call_plan.scoring().scale) {
    Scratch carving(scratch);
    memory = plan.carve(carving);
  }

  void run() const {
    const std::int64_t kv_heads = g.s.kv_heads, at_once = g.heads_at_once(),
                       k_blocks = g.k_blocks();
    for (std::int64_t first = 0; first < kv_heads; first += at_once) {
      const std::int64_t count = std::min(at_once, kv_heads - first), heads = count * g.group(),
                         items = std::ssize(plan.rows.parts()) * heads,
                         merges = std::ssize(plan.rows.cut_rows()) * heads;
#pragma omp parallel num_threads(plan.place().threads)
      {
#pragma omp for schedule(dynamic)
        for (std::int64_t block = 0; block < count * k_blocks; ++block) {
          if (plan.tiles.used(block % k_blocks)) memory.finite[block] = pack(first, block);
        }
        Scratch carving(memory.threads + omp_get_thread_num() * plan.thread_bytes);
        ThreadScratch scratch(carving, g, plan.tiles);
        const Tiles tiles;
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < items; ++item) {
          attend(plan.rows.parts()[static_cast<std::size_t>(item / heads)], first * g.group(),
                 item % heads, scratch);
        }
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < merges; ++item) {
          finish_cut(plan.rows.cut_rows()[static_cast<std::size_t>(item / heads)],
                     first * g.group(), item % heads);
        }
      }
    }
  }

 private:
  /// Heads are counted from the first of those at once.
  Partial partial(std::int64_t head, std::int64_t slot) const {
    Scratch carving(memory.partials + (head * plan.rows.slots() + slot) * plan.partial_bytes);
    return {carving, g};
  }
  Bits* packed_k(std::int64_t block) const { return memory.packed + block * g.block_elements(); }
  Bits* packed_v(std::int64_t block) const { return packed_k(block) + kKBlock * g.depth(); }

  /// Returns whether the values are all finite.
  bool pack(std::int64_t first_head, std::int64_t block) const {
    const std::int64_t head = first_head + block / g.k_blocks(), kb = block % g.k_blocks(),
                       count = plan.tiles.k_count(kb);
    pack_transposed(rows_of(t.k, head, kb * kKBlock, count), kKBlock, g.depth(), packed_k(block));
    return pack_pairs(rows_of(t.v, head, kb * kKBlock, count), kKBlock, g.width(), packed_v(block));
  }

  void attend(const RowPart& part, std::int64_t first_head, std::int64_t head,
              const ThreadScratch& own) const {
    ThreadScratch s = own;
    if (part.slot >= 0) s.partial = partial(head, part.slot);
    const std::int64_t rows = plan.tiles.q_count(part.qb);
    std::fill_n(s.partial.out, rows * g.width(), 0.0f);
    std::fill_n(s.partial.rows, rows, RowState{{}, kMinusInfinity});
    if (part.last > part.first) {
      pack_rows(rows_of(t.q, first_head + head, part.qb * kQBlock, rows), whole(rows), g.depth(),
                s.q);
      attend_rows(part, first_head / g.group() + head / g.group(), head / g.group() * g.k_blocks(),
                  s);
    }
    if (part.slot < 0) write(part.qb, first_head + head, s.partial);
  }

  void attend_rows(const RowPart& part, std::int64_t kv_head, std::int64_t first_block,
                   ThreadScratch& s) const {
    std::int64_t stages = 0;
    for (std::int64_t kb = 0, tile = 0; tile < part.last; ++kb) {
      if (plan.tiles.kind(part.qb, kb) == TileKind::empty || tile++ < part.first) continue;
      plan.tiles.describe(part.qb, kb, s.tile);
      for (std::int64_t row = 0; row < s.tile.rows(); row += kStep) {
        Stage& stage = s.stages[stages % 3];
        if (!describe(row, s.tile, stage)) continue;
        stage.keys = packed_k(first_block + kb);
        stage.values = packed_v(first_block + kb);
        stage.finite = memory.finite[first_block + kb] != 0;
        stage.key_block = kb;
        ++stages;
        advance(stages - 1, stages, kv_head, s);
      }
    }
    for (std::int64_t step = stages; step < stages + 2; ++step) advance(step, stages, kv_head, s);
  }

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
  void advance(std::int64_t i, std::int64_t count, std::int64_t kv_head, ThreadScratch& s) const {
    const auto stage = [&](std::int64_t at) {
      return at >= 0 && at < count ? s.stages + at % 3 : nullptr;
    };
    Stage *const scored = stage(i), *const weighed = stage(i - 1), *const summed = stage(i - 2);
    const auto products = [](const Stage* of, std::int64_t other_steps) {
      return of == nullptr ? 0 : (of->end - of->begin) / kStep * other_steps;
    };
    const std::int64_t all = products(scored, g.depth() / kStep) +
                             products(summed, g.width() / kStep),
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
      if (!summed->finite) sum_the_rest(*summed, kv_head, s.weights[i & 1], s.partial.out);
    }
    while (row < rows) weigh_next();
  }

  /// scores[32, keys] = Q K^T.
  template <class Between>
  void score(const Stage& stage, const Bits* q, float* scores, const Between& between) const {
    for (std::int64_t key = stage.begin; key < stage.end; key += kStep) {
      const Bits* const keys = stage.keys + key * g.depth();
      multiply<Into::store>(q + stage.row * g.depth(), g.depth(), keys,
                            keys + kTileColumns * g.depth(), g.depth(), scores + key, kKBlock,
                            between);
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
    out += stage.row * g.width();
    for (std::int64_t row = 0; row < stage.rows; ++row) {
      if (stage.factor[row] != 1) scale_row(stage.factor[row], out + row * g.width(), g.width());
    }
    for (std::int64_t d = 0; d < g.width(); d += kStep) {
      const Bits* const values = stage.values + d * kKBlock + stage.begin * kTileColumns;
      multiply<Into::add>(weights + stage.begin, kKBlock, values, values + kTileColumns * kKBlock,
                          stage.end - stage.begin, out + d, g.width(), between);
    }
  }

  static void scale_row(float factor, float* row, std::int64_t width) {
    const __m512 by = _mm512_set1_ps(factor);
    for (std::int64_t d = 0; d < width; d += 16)
      _mm512_store_ps(row + d, _mm512_mul_ps(_mm512_load_ps(row + d), by));
  }

  /// Adds the values that are not finite, which were packed as zeros, to the rows that see them.
  void sum_the_rest(const Stage& stage, std::int64_t kv_head, const Bits* weights,
                    float* out) const {
    const std::int64_t first = stage.key_block * kKBlock,
                       end = std::min(stage.end, plan.tiles.k_count(stage.key_block));
    const HeadRows values = rows_of(t.v, kv_head, first, end);
    for (std::int64_t key = stage.begin; key < end; ++key) {
      for (std::int64_t d = 0; d < g.s.value_dim; ++d) {
        const Bits value = row_of(values, key)[d];
        if (is_finite(value)) continue;
        for (std::int64_t row = 0; row < stage.rows; ++row) {
          if (stage.masked && (stage.seen[row][key / 16] >> key % 16 & 1) == 0) continue;
          out[(stage.row + row) * g.width() + d] +=
              widened(weights[row * kKBlock + key]) * widened(value);
        }
      }
    }
  }

  /// The parts of a row become one, in order: the first of them.
  void finish_cut(const CutRow& cut, std::int64_t first_head, std::int64_t head) const {
    const Partial into = partial(head, cut.slot);
    for (std::int64_t part = 1; part < cut.parts; ++part) {
      const Partial added = partial(head, cut.slot + part);
      for (std::int64_t row = 0; row < plan.tiles.q_count(cut.qb); ++row)
        add_part(added, into, row);
    }
    write(cut.qb, first_head + head, into);
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
      scale_row(factor, part->out + row * g.width(), g.width());
      state.reference = largest;
    }
    add_row(added.rows[row].sums, into.rows[row].sums, 16);
    add_row(added.out + row * g.width(), into.out + row * g.width(), g.width());
  }

  static void add_row(const float* from, float* to, std::int64_t width) {
    for (std::int64_t d = 0; d < width; d += 16)
      _mm512_store_ps(to + d, _mm512_add_ps(_mm512_load_ps(to + d), _mm512_load_ps(from + d)));
  }

  void write(std::int64_t qb, std::int64_t head, const Partial& partial) const {
    if (plan.tiles.work(qb) == 0 && t.mode == Mode::add) return;
    for (std::int64_t row = 0; row < plan.tiles.q_count(qb); ++row) {
      const RowState& state = partial.rows[row];
      const float sum = _mm512_reduce_add_ps(_mm512_load_ps(state.sums));
      Lse lse{kMinusInfinity, 0};
      if (sum != 0) {  // a largest weight is at least 1; of NaN alone there is a NaN
        lse = Lse::of(static_cast<double>(exponent.scale) * static_cast<double>(state.reference) +
                      std::log(static_cast<double>(sum)));
      }
      put_row({partial.out + row * g.width(), sum, lse}, t, qb * kQBlock + row, head);
    }
  }

  const ForwardPlan& plan;
  const BlockForwardTensors t;
  const Geometry& g;
  const Exponent exponent;
  ForwardPlan::Memory memory{};
};

void ForwardPlan::compute(const BlockForwardTensors& tensors, std::byte* scratch) const {
  Forward(*this, tensors, scratch).run();
}

void ForwardPlan::run_forward(const BlockForwardTensors& tensors, const BlockMemory& memory,
                              const Stream& stream) const {
  stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
    compute(tensors, scratch);
  });
}

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
  return std::make_shared<const ForwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

// Blocked forward on the CPU. K (transposed) and V are packed once a key/value head and shared by
// all its query heads and rows; then every (query head, block of rows) is one work item that
// streams over the key blocks, or several where there are few. Compiled for AVX2 and AVX-512.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/block_forward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <omp.h>

#include "attention/block_impl.h"
#include "attention/pack_cpu.h"
#include "attention/put_rows_cpu.h"
#include "attention/row_parts.h"
#include "attention/scratch_cpu.h"
#include "attention/softmax_cpu.h"
#include "attention/tile_cpu.h"
#include "attention/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

constexpr std::int64_t kQBlock = 48, kKBlock = 384;
constexpr std::int64_t kScoreStride =
    kKBlock + 16;  // off the powers of two: rows fall into different cache sets
constexpr std::int64_t kPackBytes =
    64 << 20;  // packed keys and values held at once, if more than one head

/// Sizes of a call's parts, from its shape.
struct Geometry {
  BlockShape s;
  std::int64_t padded_dim() const { return padded_to_vectors(s.dim); }
  std::int64_t padded_value_dim() const { return padded_to_vectors(s.value_dim); }
  std::int64_t k_blocks() const { return (s.k_rows + kKBlock - 1) / kKBlock; }
  /// Query heads that share a key/value head.
  std::int64_t group() const { return s.kv_heads == 0 ? 0 : s.heads / s.kv_heads; }
  /// Packed floats of one block of keys and its values.
  std::int64_t block_floats() const { return kKBlock * (s.dim + padded_value_dim()); }
  /// Key/value heads whose packed keys and values are held at once.
  std::int64_t heads_at_once() const {
    const std::int64_t head_bytes = k_blocks() * block_floats() * 4;
    return std::clamp<std::int64_t>(kPackBytes / std::max<std::int64_t>(1, head_bytes), 1,
                                    std::max<std::int64_t>(1, s.kv_heads));
  }
};

struct ThreadScratch {
  float *q, *scores, *out;
  TileRows tile;
  ThreadScratch(Scratch& scratch, const Geometry& g, const TilePlan& tiles)
      : q(scratch.floats(kQBlock * g.padded_dim())),
        scores(scratch.floats(kQBlock * kScoreStride)),
        out(scratch.floats(kQBlock * g.padded_value_dim())),
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
  }
  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  struct Memory {
    float* packed;         // keys and values, [heads at once][key blocks]
    std::uint8_t* finite;  // whether a block's values all are
    RowState* states;      // of the parts of rows, [heads at once x group][slots][kQBlock]
    float* sums;           // the same, in rows of padded_value_dim()
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    const std::int64_t blocks = geometry.heads_at_once() * geometry.k_blocks();
    const std::int64_t parts = geometry.heads_at_once() * geometry.group() * rows.slots();
    return {scratch.floats(blocks * geometry.block_floats()), scratch.array<std::uint8_t>(blocks),
            scratch.array<RowState>(parts * kQBlock),
            scratch.floats(parts * kQBlock * geometry.padded_value_dim()),
            scratch.array<std::byte>(place().threads * thread_bytes)};
  }

  const Geometry geometry;
  const TilePlan tiles;
  const RowParts rows;
  std::int64_t thread_bytes = 0;

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
      : plan(call_plan), t(tensors), g(call_plan.geometry), scoring(call_plan.scoring()) {
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
  bool sigmoid() const { return scoring.weighting == Weighting::sigmoid; }
  float* packed_k(std::int64_t block) const { return memory.packed + block * g.block_floats(); }
  float* packed_v(std::int64_t block) const { return packed_k(block) + kKBlock * g.s.dim; }

  /// Returns whether the values are all finite.
  bool pack(std::int64_t first_head, std::int64_t block) const {
    const std::int64_t head = first_head + block / g.k_blocks(), kb = block % g.k_blocks(),
                       count = plan.tiles.k_count(kb);
    pack_transposed(rows_of(t.k, head, kb * kKBlock, count), packed_k(block));
    return pack_panels(rows_of(t.v, head, kb * kKBlock, count), 1, packed_v(block), kKBlock);
  }

  /// Heads are counted from the first of those at once.
  RowState* states(std::int64_t head, std::int64_t slot) const {
    return memory.states + (head * plan.rows.slots() + slot) * kQBlock;
  }
  float* sums(std::int64_t head, std::int64_t slot) const {
    return memory.sums + (head * plan.rows.slots() + slot) * kQBlock * g.padded_value_dim();
  }

  void attend(const RowPart& part, std::int64_t first_head, std::int64_t head,
              ThreadScratch& scratch) const {
    const std::int64_t rows = plan.tiles.q_count(part.qb), k_blocks = g.k_blocks(),
                       first_block = head / g.group() * k_blocks;
    RowState own[kQBlock];
    RowState* state = own;
    float* out = scratch.out;
    if (part.slot >= 0) {
      state = states(head, part.slot);
      out = sums(head, part.slot);
      std::fill_n(state, kQBlock, RowState());
    }
    if (part.last > part.first) {
      pack_rows(rows_of(t.q, first_head + head, part.qb * kQBlock, rows), scoring.scale, scratch.q,
                g.padded_dim());
      std::fill_n(out, rows * g.padded_value_dim(), 0.0f);
    } else if (t.mode == Mode::add) {
      return;
    }
    for (std::int64_t kb = 0, tile = 0; kb < k_blocks && tile < part.last; ++kb) {
      if (plan.tiles.kind(part.qb, kb) == TileKind::empty || tile++ < part.first) continue;
      plan.tiles.describe(part.qb, kb, scratch.tile);
      const std::int64_t block = first_block + kb;
      attend_tile(packed_k(block), packed_v(block), memory.finite[block] != 0, scratch, state, out);
    }
    if (part.slot < 0) write(part.qb, first_head + head, state, out);
  }

  /// The parts of a row become one, in order: the first of them.
  void finish_cut(const CutRow& cut, std::int64_t first_head, std::int64_t head) const {
    RowState* state = states(head, cut.slot);
    float* out = sums(head, cut.slot);
    for (std::int64_t part = 1; part < cut.parts; ++part) {
      const RowState* added = states(head, cut.slot + part);
      const float* from = sums(head, cut.slot + part);
      for (std::int64_t row = 0; row < plan.tiles.q_count(cut.qb); ++row)
        add_part(added[row], from + row * g.padded_value_dim(), state[row],
                 out + row * g.padded_value_dim());
    }
    write(cut.qb, first_head + head, state, out);
  }

  void add_part(const RowState& added, const float* from, RowState& state, float* out) const {
    if (added.max == kMinusInfinity) return;
    // A NaN is larger than all else.
    const float max = state.max != state.max || added.max < state.max ? state.max : added.max;
    const float kept = std::exp(state.max - max), factor = std::exp(added.max - max);
    const Vector by_kept = hn::Set(kFloats, kept), by_factor = hn::Set(kFloats, factor);
    for (std::int64_t d = 0; d < g.padded_value_dim(); d += kLanes) {
      const Vector sum = hn::Mul(hn::Load(kFloats, out + d), by_kept);
      hn::Store(hn::MulAdd(hn::Load(kFloats, from + d), by_factor, sum), kFloats, out + d);
    }
    state.sum = state.sum * kept + added.sum * factor;
    state.max = max;
  }

  void write(std::int64_t qb, std::int64_t head, const RowState* state, const float* out) const {
    for (std::int64_t row = 0; row < plan.tiles.q_count(qb); ++row) {
      const float* row_sums = out + row * g.padded_value_dim();
      if (sigmoid()) {
        write_sum(qb * kQBlock + row, head, state[row].max != kMinusInfinity, row_sums);
      } else {
        const auto [max, sum] = state[row];
        const Lse lse = max == kMinusInfinity ? Lse{kMinusInfinity, 0} : lse_of_sum(max, sum);
        put_row({row_sums, sum, lse}, t, qb * kQBlock + row, head);
      }
    }
  }

  void attend_tile(const float* k_panels, const float* v_panels, bool finite,
                   const ThreadScratch& scratch, RowState* state, float* out) const {
    const TileRows& tile = scratch.tile;
    const std::int64_t rows = tile.rows(), ldo = g.padded_value_dim();
    Span hulls[kQBlock / kTileRows];
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      hulls[row / kTileRows] = tile.hull(row, std::min<std::int64_t>(kTileRows, rows - row));
    }
    for (std::int64_t c = 0; c < tile.keys(); c += kTileColumns) {
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.end <= c || hull.begin >= c + kTileColumns) continue;
        const std::int64_t columns = std::min<std::int64_t>(kTileColumns, hull.end - c);
        multiply<Operand::rows, Into::store>(
            std::min<std::int64_t>(kTileRows, rows - row), (columns + kLanes - 1) / kLanes,
            scratch.q + row * g.padded_dim(), g.padded_dim(), k_panels + c * g.s.dim, kTileColumns,
            g.s.dim, scratch.scores + row * kScoreStride + c, kScoreStride);
      }
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const Span hull = hulls[row / kTileRows];
      if (hull.empty()) continue;
      float* scores = scratch.scores + row * kScoreStride;
      const Columns columns = columns_of(hull);
      if (scoring.softcap > 0) softcap_row(scores, columns, scoring.softcap);
      mask_row(scores, tile.spans(row), columns);
      if (sigmoid()) {
        sigmoid_row(scores, columns, scoring.bias);
        if (!tile.spans(row).empty()) state[row].max = 0;  // all that a sum needs: there is one
        continue;
      }
      const float factor = online_softmax(scores, columns, state[row]);
      if (factor != 1) {
        float* out_row = out + row * ldo;
        const Vector by = hn::Set(kFloats, factor);
        for (std::int64_t d = 0; d < ldo; d += kLanes)
          hn::StoreU(hn::Mul(hn::LoadU(kFloats, out_row + d), by), kFloats, out_row + d);
      }
    }
    if (!finite && !tile.full()) return add_values_row_by_row(v_panels, scratch, out);
    const Panels panels(g.s.value_dim);
    for (std::int64_t i = 0; i < panels.count(); ++i) {
      const Panel panel = panels[i];
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.empty()) continue;
        multiply<Operand::rows, Into::add>(
            std::min<std::int64_t>(kTileRows, rows - row), panel.vectors,
            scratch.scores + row * kScoreStride + hull.begin, kScoreStride,
            v_panels + panel.column * kKBlock + hull.begin * panel.columns(), panel.columns(),
            hull.end - hull.begin, out + row * ldo + panel.column, ldo);
      }
    }
  }

  /// The same sums in the same order over visible keys only: 0 * NaN would carry a masked value
  /// into the row.
  void add_values_row_by_row(const float* v_panels, const ThreadScratch& scratch,
                             float* out) const {
    const TileRows& tile = scratch.tile;
    const Panels panels(g.s.value_dim);
    for (std::int64_t row = 0; row < tile.rows(); ++row) {
      for (std::int64_t p = 0; p < panels.count(); ++p) {
        const Panel panel = panels[p];
        alignas(64) float sum[kTileColumns] = {};
        for (const Span& span : tile.spans(row)) {
          multiply<Operand::rows, Into::chain>(
              1, panel.vectors, scratch.scores + row * kScoreStride + span.begin, kScoreStride,
              v_panels + panel.column * kKBlock + span.begin * panel.columns(), panel.columns(),
              span.end - span.begin, sum, kTileColumns);
        }
        float* out_row = out + row * g.padded_value_dim() + panel.column;
        for (std::int64_t i = 0; i < panel.columns(); ++i) out_row[i] += sum[i];
      }
    }
  }

  /// A row of a sigmoid: partials add, and what it has seen nothing of stays as it is.
  void write_sum(std::int64_t row, std::int64_t head, bool seen, const float* sums) const {
    float* to = t.out.as<float>() + row * t.out.stride(0) + head * t.out.stride(1);
    for (std::int64_t d = 0; d < g.s.value_dim; ++d) {
      if (t.mode == Mode::write) {
        to[d] = seen ? sums[d] : 0;
      } else if (seen) {
        to[d] += sums[d];
      }
    }
  }

  const ForwardPlan& plan;
  const BlockForwardTensors t;
  const Geometry& g;
  const Scoring& scoring;
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

std::shared_ptr<const BlockPlan> plan_forward(const std::vector<Slice>& bands,
                                              const BlockShape& shape, const Scoring& scoring,
                                              const BlockPlace& place) {
  return std::make_shared<const ForwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention {

HWY_EXPORT(plan_forward);

std::shared_ptr<const BlockPlan> detail::cpu_plan_forward(std::vector<Slice> bands,
                                                          const BlockShape& shape,
                                                          const Scoring& scoring,
                                                          const BlockPlace& place) {
  if (amx_computes(shape, scoring)) return amx_plan_forward(bands, shape, scoring, place);
  return LONGHAUL_DISPATCH(plan_forward)(bands, shape, scoring, place);
}

}  // namespace longhaul::attention
#endif  // HWY_ONCE

// Blocked backward on the CPU. A work item is one key/value head and key block; it holds dK and dV
// and goes over the query heads and row blocks that see it. P comes from the global LSE. dQ of a
// row block is summed in the order of the key blocks: an item waits for its turn, which in the
// usual order of work has come already. Compiled for AVX2 and AVX-512.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/block_backward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <omp.h>

#include <atomic>
#include <cmath>

#include "attention/block_impl.h"
#include "attention/pack_cpu.h"
#include "attention/put_rows_cpu.h"
#include "attention/scratch_cpu.h"
#include "attention/softmax_cpu.h"
#include "attention/tile_cpu.h"
#include "attention/tiles.h"
#include "attention/turns_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

constexpr std::int64_t kQBlock = 48, kKBlock = 192;
constexpr std::int64_t kScoreStride = kKBlock + 16;

struct Geometry {
  BlockShape s;
  std::int64_t padded_dim() const { return padded_to_vectors(s.dim); }
  std::int64_t padded_value_dim() const { return padded_to_vectors(s.value_dim); }
};

struct ThreadScratch {
  float *k_transposed, *v_transposed, *k_panels, *dk, *dv;  // of the key block
  float *q, *q_panels, *dout, *dout_panels, *dq;            // of the row block
  float *p, *ds;                                            // of the tile
  TileRows tile;
  Lse lse[kQBlock];
  float delta[kQBlock];
  ThreadScratch(Scratch& s, const Geometry& g, const TilePlan& tiles)
      : k_transposed(s.floats(kKBlock * g.padded_dim())),
        v_transposed(s.floats(kKBlock * g.padded_value_dim())),
        k_panels(s.floats(kKBlock * g.padded_dim())),
        dk(s.floats(kKBlock * g.padded_dim())),
        dv(s.floats(kKBlock * g.padded_value_dim())),
        q(s.floats(kQBlock * g.padded_dim())),
        q_panels(s.floats(kQBlock * g.padded_dim())),
        dout(s.floats(kQBlock * g.padded_value_dim())),
        dout_panels(s.floats(kQBlock * g.padded_value_dim())),
        dq(s.floats(kQBlock * g.padded_dim())),
        p(s.floats(kQBlock * kScoreStride)),
        ds(s.floats(kQBlock * kScoreStride)),
        tile(s.array<std::int32_t>(kQBlock), s.array<std::int32_t>(kQBlock),
             s.array<Span>(tiles.most_spans())) {}
};

class BackwardPlan final : public BlockPlan {
 public:
  BackwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
               const BlockPlace& place)
      : BlockPlan(Pass::backward, shape, scoring, place),
        geometry{shape},
        tiles(bands, shape.q_rows, shape.k_rows, kQBlock, kKBlock) {
    thread_bytes =
        carved_bytes([this](Scratch& scratch) { ThreadScratch(scratch, geometry, tiles); });
  }
  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  struct Memory {
    Turns::Turn* turns;
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    return {scratch.array<Turns::Turn>(turns()),
            scratch.array<std::byte>(place().threads * thread_bytes)};
  }
  std::int64_t turns() const { return shape().heads * tiles.q_blocks(); }

  const Geometry geometry;
  const TilePlan tiles;
  std::int64_t thread_bytes = 0;

  using BlockPlan::compute;
  void compute(const BlockBackwardTensors& tensors, std::byte* scratch) const override;

 protected:
  void run_backward(const BlockBackwardTensors& tensors, const BlockMemory& memory,
                    const Stream& stream) const override;
};

/// One call.
class Backward {
 public:
  Backward(const BackwardPlan& call_plan, const BlockBackwardTensors& tensors, std::byte* scratch)
      : plan(call_plan),
        tiles(call_plan.tiles),
        in(tensors.inputs),
        t(tensors),
        g(call_plan.geometry),
        scoring(call_plan.scoring()) {
    Scratch carving(scratch);
    memory = plan.carve(carving);
  }

  void run() const {
    if (t.dq_mode == Mode::write) clear_unseen_rows();
    Turns turns(memory.turns, plan.turns());
    // Items start in this order, so the earliest unfinished one never waits.
    std::atomic<std::int64_t> next{0};
    const std::int64_t items = g.s.kv_heads * tiles.k_blocks();
#pragma omp parallel num_threads(plan.place().threads)
    {
      Scratch carving(memory.threads + omp_get_thread_num() * plan.thread_bytes);
      ThreadScratch scratch(carving, g, tiles);
      for (std::int64_t item = next++; item < items; item = next++)
        key_block(item / tiles.k_blocks(), item % tiles.k_blocks(), turns, scratch);
    }
  }

 private:
  bool sigmoid() const { return scoring.weighting == Weighting::sigmoid; }
  std::int64_t padded_dim() const { return g.padded_dim(); }
  std::int64_t padded_value_dim() const { return g.padded_value_dim(); }

  void clear_unseen_rows() const {
#pragma omp parallel for num_threads(plan.place().threads)
    for (std::int64_t qb = 0; qb < tiles.q_blocks(); ++qb) {
      if (tiles.work(qb) == 0) clear_rows(t.dq, qb * kQBlock, tiles.q_count(qb));
    }
  }

  void key_block(std::int64_t kv_head, std::int64_t kb, Turns& turns, ThreadScratch& s) const {
    const std::int64_t keys = tiles.k_count(kb), group = g.s.heads / g.s.kv_heads;
    if (tiles.used(kb)) {
      const HeadRows k_rows = rows_of(in.k, kv_head, kb * kKBlock, keys);
      const bool k_finite = pack_transposed(k_rows, s.k_transposed);
      pack_panels(k_rows, scoring.scale, s.k_panels, kKBlock);
      pack_transposed(rows_of(in.v, kv_head, kb * kKBlock, keys), s.v_transposed);
      std::fill_n(s.dk, keys * padded_dim(), 0.0f);
      std::fill_n(s.dv, keys * padded_value_dim(), 0.0f);
      for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (std::int64_t qb = 0; qb < tiles.q_blocks(); ++qb) {
          if (tiles.kind(qb, kb) == TileKind::empty) continue;
          tiles.describe(qb, kb, s.tile);
          const bool rows_finite = pack_row_block(head, qb, s);
          tile_gradients(k_finite && rows_finite, s);
          const std::int64_t turn = tiles.tiles_before(qb, kb);
          turns.wait(head * tiles.q_blocks() + qb, turn);
          put_gradients(s.dq, padded_dim(), t.dq, head, qb * kQBlock, s.tile.rows(),
                        turn == 0 ? t.dq_mode : Mode::add);
          turns.pass(head * tiles.q_blocks() + qb);
        }
      }
    } else if (t.dkv_mode == Mode::write) {
      std::fill_n(s.dk, keys * padded_dim(), 0.0f);
      std::fill_n(s.dv, keys * padded_value_dim(), 0.0f);
    } else {
      return;
    }
    put_gradients(s.dk, padded_dim(), t.dk, kv_head, kb * kKBlock, keys, t.dkv_mode);
    put_gradients(s.dv, padded_value_dim(), t.dv, kv_head, kb * kKBlock, keys, t.dkv_mode);
  }

  /// Returns whether q and dout are finite. Rows whose global LSE is -inf contribute nothing: they
  /// are hidden.
  bool pack_row_block(std::int64_t head, std::int64_t qb, ThreadScratch& s) const {
    TileRows& tile = s.tile;
    const std::int64_t rows = tile.rows(), begin = qb * kQBlock;
    const HeadRows q_rows = rows_of(in.q, head, begin, rows),
                   dout_rows = rows_of(in.dout, head, begin, rows);
    pack_rows(q_rows, scoring.scale, s.q, padded_dim());
    pack_rows(dout_rows, 1, s.dout, padded_value_dim());
    const bool q_finite = pack_panels(q_rows, scoring.scale, s.q_panels, kQBlock);
    const bool dout_finite = pack_panels(dout_rows, 1, s.dout_panels, kQBlock);
    if (sigmoid()) return q_finite && dout_finite;
    for (std::int64_t row = 0; row < rows; ++row) {
      s.lse[row] = Lse::load(in.lse.as<float>() + (begin + row) * in.lse.stride(0) +
                             head * in.lse.stride(1));
      s.delta[row] =
          in.delta.as<float>()[(begin + row) * in.delta.stride(0) + head * in.delta.stride(1)];
      if (s.lse[row].high == kMinusInfinity) {
        tile.hide(row);
        s.lse[row] = {0, 0};
        s.delta[row] = 0;
      }
    }
    return q_finite && dout_finite;
  }

  /// dq <- the tile's share; dk, dv += theirs.
  void tile_gradients(bool finite, ThreadScratch& s) const {
    const TileRows& tile = s.tile;
    const std::int64_t rows = tile.rows();
    Span hulls[kQBlock / kTileRows];
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      hulls[row / kTileRows] = tile.hull(row, std::min<std::int64_t>(kTileRows, rows - row));
    }
    scores(s.q, padded_dim(), s.k_transposed, g.s.dim, hulls, tile, s.p);
    scores(s.dout, padded_value_dim(), s.v_transposed, g.s.value_dim, hulls, tile, s.ds);
    for (std::int64_t row = 0; row < rows; ++row) {
      const Span hull = hulls[row / kTileRows];
      const Columns columns = hull.empty() ? Columns{} : columns_of(hull);
      float* const p = s.p + row * kScoreStride;
      float* const ds = s.ds + row * kScoreStride;
      weight_gradients(p, ds, columns, tile.spans(row), s.lse[row], s.delta[row]);
      if (!tile.full()) {  // key groups read whole columns of row groups
        for (float* x : {p, ds}) {
          std::fill(x, x + columns.begin, 0.0f);
          std::fill(x + columns.end, x + std::max(columns.end, tile.keys()), 0.0f);
        }
      }
    }
    if (!finite && !tile.full()) return visible_gradients(s);
    for (std::int64_t p = 0; p < dim_panels.count(); ++p) {
      const Panel panel = dim_panels[p];
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        multiply<Operand::rows, Into::store>(
            std::min<std::int64_t>(kTileRows, rows - row), panel.vectors,
            s.ds + row * kScoreStride + hull.begin, kScoreStride,
            s.k_panels + panel.column * kKBlock + hull.begin * panel.columns(), panel.columns(),
            hull.end - hull.begin, s.dq + row * padded_dim() + panel.column, padded_dim());
      }
    }
    key_gradients(s, hulls);
  }

  /// p: scores -> weights; ds: dout v -> gradients of the scaled products.
  void weight_gradients(float* p, float* ds, Columns columns, std::span<const Span> spans, Lse lse,
                        float delta) const {
    if (sigmoid()) delta = 0;
    if (scoring.softcap > 0) {
      softcap_row_backward(p, ds, columns, scoring.softcap, delta);
      delta = 0;
    }
    mask_row(p, spans, columns);
    if (sigmoid()) {
      sigmoid_backward(p, ds, columns, scoring.bias);
    } else {
      softmax_backward(p, ds, columns, lse, delta);
    }
  }

  /// to[rows, keys] <- A K^T where a row group sees something.
  static void scores(const float* a, std::int64_t lda, const float* panels, std::int64_t depth,
                     const Span* hulls, const TileRows& tile, float* to) {
    for (std::int64_t c = 0; c < tile.keys(); c += kTileColumns) {
      for (std::int64_t row = 0; row < tile.rows(); row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.end <= c || hull.begin >= c + kTileColumns) continue;
        const std::int64_t columns = std::min<std::int64_t>(kTileColumns, hull.end - c);
        multiply<Operand::rows, Into::store>(std::min<std::int64_t>(kTileRows, tile.rows() - row),
                                             (columns + kLanes - 1) / kLanes, a + row * lda, lda,
                                             panels + c * depth, kTileColumns, depth,
                                             to + row * kScoreStride + c, kScoreStride);
      }
    }
  }

  /// dv += P^T dout, dk += dS^T q, over the rows that see a group of keys.
  void key_gradients(ThreadScratch& s, const Span* hulls) const {
    const TileRows& tile = s.tile;
    for (std::int64_t key = 0; key < tile.keys(); key += kTileRows) {
      const std::int64_t keys = std::min<std::int64_t>(kTileRows, tile.keys() - key);
      std::int64_t first = tile.rows(), last = 0;
      for (std::int64_t row = 0; row < tile.rows(); row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.begin >= key + keys || hull.end <= key) continue;
        first = std::min(first, row);
        last = std::min<std::int64_t>(row + kTileRows, tile.rows());
      }
      if (first >= last) continue;
      const std::int64_t at = first * kScoreStride + key, depth = last - first;
      for (std::int64_t i = 0; i < value_panels.count(); ++i) {
        const Panel panel = value_panels[i];
        multiply<Operand::columns, Into::add>(
            keys, panel.vectors, s.p + at, kScoreStride,
            s.dout_panels + panel.column * kQBlock + first * panel.columns(), panel.columns(),
            depth, s.dv + key * padded_value_dim() + panel.column, padded_value_dim());
      }
      for (std::int64_t i = 0; i < dim_panels.count(); ++i) {
        const Panel panel = dim_panels[i];
        multiply<Operand::columns, Into::add>(
            keys, panel.vectors, s.ds + at, kScoreStride,
            s.q_panels + panel.column * kQBlock + first * panel.columns(), panel.columns(), depth,
            s.dk + key * padded_dim() + panel.column, padded_dim());
      }
    }
  }

  /// The same sums in the same order over visible pairs only: 0 * NaN would carry a masked row or
  /// key into another's gradient.
  void visible_gradients(ThreadScratch& s) const {
    const TileRows& tile = s.tile;
    std::fill_n(s.dq, tile.rows() * padded_dim(), 0.0f);
    std::vector<float> dk_tile(static_cast<std::size_t>(tile.keys() * padded_dim()));
    std::vector<float> dv_tile(static_cast<std::size_t>(tile.keys() * padded_value_dim()));
    const auto add_scaled = [](float factor, const float* from, std::int64_t n, float* to) {
      for (std::int64_t d = 0; d < n; ++d) to[d] = std::fma(factor, from[d], to[d]);
    };
    for (std::int64_t row = 0; row < tile.rows(); ++row) {
      for (const Span& span : tile.spans(row)) {
        const std::int64_t at = row * kScoreStride + span.begin;
        for (std::int64_t i = 0; i < dim_panels.count(); ++i) {
          const Panel panel = dim_panels[i];
          multiply<Operand::rows, Into::chain>(
              1, panel.vectors, s.ds + at, kScoreStride,
              s.k_panels + panel.column * kKBlock + span.begin * panel.columns(), panel.columns(),
              span.end - span.begin, s.dq + row * padded_dim() + panel.column, padded_dim());
        }
        for (std::int64_t key = span.begin; key < span.end; ++key) {
          add_scaled(s.ds[row * kScoreStride + key], s.q + row * padded_dim(), g.s.dim,
                     dk_tile.data() + key * padded_dim());
          add_scaled(s.p[row * kScoreStride + key], s.dout + row * padded_value_dim(),
                     g.s.value_dim, dv_tile.data() + key * padded_value_dim());
        }
      }
    }
    for (std::size_t i = 0; i < dk_tile.size(); ++i) s.dk[i] += dk_tile[i];
    for (std::size_t i = 0; i < dv_tile.size(); ++i) s.dv[i] += dv_tile[i];
  }

  const BackwardPlan& plan;
  const TilePlan& tiles;
  const BlockBackwardInputs& in;
  const BlockBackwardTensors& t;
  const Geometry& g;
  const Scoring& scoring;
  const Panels dim_panels{g.s.dim}, value_panels{g.s.value_dim};
  BackwardPlan::Memory memory{};
};

void BackwardPlan::compute(const BlockBackwardTensors& tensors, std::byte* scratch) const {
  Backward(*this, tensors, scratch).run();
}

void BackwardPlan::run_backward(const BlockBackwardTensors& tensors, const BlockMemory& memory,
                                const Stream& stream) const {
  stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
    compute(tensors, scratch);
  });
}

}  // namespace

std::shared_ptr<const BlockPlan> plan_backward(const std::vector<Slice>& bands,
                                               const BlockShape& shape, const Scoring& scoring,
                                               const BlockPlace& place) {
  return std::make_shared<const BackwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention {

HWY_EXPORT(plan_backward);

std::shared_ptr<const BlockPlan> detail::cpu_plan_backward(std::vector<Slice> bands,
                                                           const BlockShape& shape,
                                                           const Scoring& scoring,
                                                           const BlockPlace& place) {
  if (amx_computes(shape, scoring)) return amx_plan_backward(bands, shape, scoring, place);
  return LONGHAUL_DISPATCH(plan_backward)(bands, shape, scoring, place);
}

}  // namespace longhaul::attention
#endif  // HWY_ONCE

// Blocked backward on the CPU: block_backward_cpu.h over float32 kernels, to which bfloat16 is
// widened. Compiled for AVX2 and AVX-512.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/block_backward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <cmath>

#include "attention/block_backward_cpu.h"
#include "attention/block_impl.h"
#include "attention/pack_cpu.h"
#include "attention/softmax_cpu.h"
#include "attention/tile_cpu.h"
#include "attention/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

class BackwardKernel {
 public:
  static constexpr std::int64_t kQBlock = 48, kKBlock = 192;
  struct Registers {};

  BackwardKernel(const BlockShape& call_shape, const Scoring& call_scoring)
      : shape(call_shape), scoring(call_scoring) {}

  std::int64_t dim() const { return padded_to_vectors(shape.dim); }
  std::int64_t value_dim() const { return padded_to_vectors(shape.value_dim); }

  struct ThreadScratch {
    float *k_transposed, *v_transposed, *k_panels, *dk, *dv;  // of the key block
    float *q, *q_panels, *dout, *dout_panels, *dq;            // of the row block
    float *p, *ds;                                            // of the tile
    TileRows tile;
    Lse lse[kQBlock];
    float delta[kQBlock];
    bool k_finite;
    ThreadScratch(Scratch& s, const BackwardKernel& kernel, const TilePlan& tiles)
        : k_transposed(s.floats(kKBlock * kernel.dim())),
          v_transposed(s.floats(kKBlock * kernel.value_dim())),
          k_panels(s.floats(kKBlock * kernel.dim())),
          dk(s.floats(kKBlock * kernel.dim())),
          dv(s.floats(kKBlock * kernel.value_dim())),
          q(s.floats(kQBlock * kernel.dim())),
          q_panels(s.floats(kQBlock * kernel.dim())),
          dout(s.floats(kQBlock * kernel.value_dim())),
          dout_panels(s.floats(kQBlock * kernel.value_dim())),
          dq(s.floats(kQBlock * kernel.dim())),
          p(s.floats(kQBlock * kScoreStride)),
          ds(s.floats(kQBlock * kScoreStride)),
          tile(s.array<std::int32_t>(kQBlock), s.array<std::int32_t>(kQBlock),
               s.array<Span>(tiles.most_spans())) {}
  };

  void start(const BlockBackwardInputs& in, const HeadBlock& keys, ThreadScratch& s) const {
    const HeadRows k = rows_of(in.k, keys.head, keys.begin, keys.count);
    s.k_finite = pack_transposed(k, s.k_transposed);
    pack_panels(k, scoring.scale, s.k_panels, kKBlock);
    pack_transposed(rows_of(in.v, keys.head, keys.begin, keys.count), s.v_transposed);
    std::fill_n(s.dk, keys.count * dim(), 0.0f);
    std::fill_n(s.dv, keys.count * value_dim(), 0.0f);
  }

  void add(const BlockBackwardInputs& in, const HeadBlock&, const HeadBlock& rows,
           ThreadScratch& s) const {
    const bool rows_finite = pack_row_block(in, rows, s);
    tile_gradients(s.k_finite && rows_finite, s);
  }

  void finish(const HeadBlock&, ThreadScratch&) const {}

 private:
  static constexpr std::int64_t kScoreStride = kKBlock + 16;

  bool sigmoid() const { return scoring.weighting == Weighting::sigmoid; }

  /// Returns whether q and dout are finite. Rows whose global LSE is -inf contribute nothing: they
  /// are hidden.
  bool pack_row_block(const BlockBackwardInputs& in, const HeadBlock& rows,
                      ThreadScratch& s) const {
    const HeadRows q_rows = rows_of(in.q, rows.head, rows.begin, rows.count),
                   dout_rows = rows_of(in.dout, rows.head, rows.begin, rows.count);
    pack_rows(q_rows, scoring.scale, s.q, dim());
    pack_rows(dout_rows, 1, s.dout, value_dim());
    const bool q_finite = pack_panels(q_rows, scoring.scale, s.q_panels, kQBlock);
    const bool dout_finite = pack_panels(dout_rows, 1, s.dout_panels, kQBlock);
    if (sigmoid()) return q_finite && dout_finite;
    for (std::int64_t row = 0; row < rows.count; ++row) {
      const std::int64_t at = rows.begin + row;
      s.lse[row] =
          Lse::load(in.lse.as<float>() + at * in.lse.stride(0) + rows.head * in.lse.stride(1));
      s.delta[row] = in.delta.as<float>()[at * in.delta.stride(0) + rows.head * in.delta.stride(1)];
      if (s.lse[row].high == kMinusInfinity) {
        s.tile.hide(row);
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
    scores(s.q, dim(), s.k_transposed, shape.dim, hulls, tile, s.p);
    scores(s.dout, value_dim(), s.v_transposed, shape.value_dim, hulls, tile, s.ds);
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
            hull.end - hull.begin, s.dq + row * dim() + panel.column, dim());
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
            depth, s.dv + key * value_dim() + panel.column, value_dim());
      }
      for (std::int64_t i = 0; i < dim_panels.count(); ++i) {
        const Panel panel = dim_panels[i];
        multiply<Operand::columns, Into::add>(
            keys, panel.vectors, s.ds + at, kScoreStride,
            s.q_panels + panel.column * kQBlock + first * panel.columns(), panel.columns(), depth,
            s.dk + key * dim() + panel.column, dim());
      }
    }
  }

  /// The same sums in the same order over visible pairs only: 0 * NaN would carry a masked row or
  /// key into another's gradient.
  void visible_gradients(ThreadScratch& s) const {
    const TileRows& tile = s.tile;
    std::fill_n(s.dq, tile.rows() * dim(), 0.0f);
    std::vector<float> dk_tile(static_cast<std::size_t>(tile.keys() * dim()));
    std::vector<float> dv_tile(static_cast<std::size_t>(tile.keys() * value_dim()));
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
              span.end - span.begin, s.dq + row * dim() + panel.column, dim());
        }
        for (std::int64_t key = span.begin; key < span.end; ++key) {
          add_scaled(s.ds[row * kScoreStride + key], s.q + row * dim(), shape.dim,
                     dk_tile.data() + key * dim());
          add_scaled(s.p[row * kScoreStride + key], s.dout + row * value_dim(), shape.value_dim,
                     dv_tile.data() + key * value_dim());
        }
      }
    }
    for (std::size_t i = 0; i < dk_tile.size(); ++i) s.dk[i] += dk_tile[i];
    for (std::size_t i = 0; i < dv_tile.size(); ++i) s.dv[i] += dv_tile[i];
  }

  const BlockShape shape;
  const Scoring scoring;
  const Panels dim_panels{shape.dim}, value_panels{shape.value_dim};
};

}  // namespace

std::shared_ptr<const BlockPlan> plan_backward(const std::vector<Slice>& bands,
                                               const BlockShape& shape, const Scoring& scoring,
                                               const BlockPlace& place) {
  return std::make_shared<const BackwardPlan<BackwardKernel>>(bands, shape, scoring, place);
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

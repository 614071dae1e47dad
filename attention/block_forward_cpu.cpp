// Blocked forward on the CPU: block_forward_cpu.h over float32 kernels, to which bfloat16 is
// widened. Compiled for AVX2 and AVX-512.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/block_forward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include "attention/block_forward_cpu.h"
#include "attention/block_impl.h"
#include "attention/pack_cpu.h"
#include "attention/put_rows_cpu.h"
#include "attention/softmax_cpu.h"
#include "attention/tile_cpu.h"
#include "attention/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

class ForwardKernel {
 public:
  static constexpr std::int64_t kQBlock = 48, kKBlock = 384;
  using Packed = float;
  using Item = ForwardItem<Packed>;
  struct Registers {};

  ForwardKernel(const BlockShape& call_shape, const Scoring& call_scoring)
      : shape(call_shape), scoring(call_scoring) {}

  std::int64_t block_elements() const { return kKBlock * (shape.dim + padded_value_dim()); }

  struct Partial {
    float* out;  // [kQBlock, padded_value_dim()], not yet divided
    RowState* rows;
    Partial(Scratch& scratch, const ForwardKernel& kernel)
        : out(scratch.floats(kQBlock * kernel.padded_value_dim())),
          rows(scratch.array<RowState>(kQBlock)) {}
  };
  struct ThreadScratch {
    float *q, *scores;
    Partial partial;
    TileRows tile;
    ThreadScratch(Scratch& scratch, const ForwardKernel& kernel, const TilePlan& tiles)
        : q(scratch.floats(kQBlock * kernel.padded_dim())),
          scores(scratch.floats(kQBlock * kScoreStride)),
          partial(scratch, kernel),
          tile(scratch.array<std::int32_t>(kQBlock), scratch.array<std::int32_t>(kQBlock),
               scratch.array<Span>(tiles.most_spans())) {}
  };

  bool pack(const BlockForwardTensors& t, std::int64_t kv_head, std::int64_t first_key,
            std::int64_t keys, float* to) const {
    pack_transposed(rows_of(t.k, kv_head, first_key, keys), to);
    return pack_panels(rows_of(t.v, kv_head, first_key, keys), 1, to + kKBlock * shape.dim,
                       kKBlock);
  }

  void clear(const Partial& partial, std::int64_t rows) const {
    std::fill_n(partial.out, rows * padded_value_dim(), 0.0f);
    std::fill_n(partial.rows, rows, RowState());
  }

  void attend(const Item& item, ThreadScratch& scratch) const {
    pack_rows(
        rows_of(item.t.q, item.head, item.part.qb * kQBlock, item.tiles.q_count(item.part.qb)),
        scoring.scale, scratch.q, padded_dim());
    item.each_tile(scratch.tile, [&](std::int64_t kb) {
      const float* const keys = item.packed + kb * block_elements();
      attend_tile(keys, keys + kKBlock * shape.dim, item.finite[kb] != 0, scratch);
    });
  }

  void merge(const Partial& added, const Partial& into, std::int64_t rows) const {
    for (std::int64_t row = 0; row < rows; ++row)
      add_part(added.rows[row], added.out + row * padded_value_dim(), into.rows[row],
               into.out + row * padded_value_dim());
  }

  void write(const Partial& partial, const BlockForwardTensors& t, std::int64_t first_row,
             std::int64_t rows, std::int64_t head) const {
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* row_sums = partial.out + row * padded_value_dim();
      const auto [max, sum] = partial.rows[row];
      if (sigmoid()) {
        write_sum(t, first_row + row, head, max != kMinusInfinity, row_sums);
      } else {
        const Lse lse = max == kMinusInfinity ? Lse{kMinusInfinity, 0} : lse_of_sum(max, sum);
        put_row({row_sums, sum, lse}, t, first_row + row, head);
      }
    }
  }

 private:
  /// Off the powers of two: rows fall into different cache sets.
  static constexpr std::int64_t kScoreStride = kKBlock + 16;

  std::int64_t padded_dim() const { return padded_to_vectors(shape.dim); }
  std::int64_t padded_value_dim() const { return padded_to_vectors(shape.value_dim); }
  bool sigmoid() const { return scoring.weighting == Weighting::sigmoid; }

  void add_part(const RowState& added, const float* from, RowState& state, float* out) const {
    if (added.max == kMinusInfinity) return;
    // A NaN is larger than all else.
    const float max = state.max != state.max || added.max < state.max ? state.max : added.max;
    const float kept = std::exp(state.max - max), factor = std::exp(added.max - max);
    const Vector by_kept = hn::Set(kFloats, kept), by_factor = hn::Set(kFloats, factor);
    for (std::int64_t d = 0; d < padded_value_dim(); d += kLanes) {
      const Vector sum = hn::Mul(hn::Load(kFloats, out + d), by_kept);
      hn::Store(hn::MulAdd(hn::Load(kFloats, from + d), by_factor, sum), kFloats, out + d);
    }
    state.sum = state.sum * kept + added.sum * factor;
    state.max = max;
  }

  void attend_tile(const float* k_panels, const float* v_panels, bool finite,
                   const ThreadScratch& scratch) const {
    const TileRows& tile = scratch.tile;
    const std::int64_t rows = tile.rows(), ldo = padded_value_dim();
    RowState* const state = scratch.partial.rows;
    float* const out = scratch.partial.out;
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
            scratch.q + row * padded_dim(), padded_dim(), k_panels + c * shape.dim, kTileColumns,
            shape.dim, scratch.scores + row * kScoreStride + c, kScoreStride);
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
    const Panels panels(shape.value_dim);
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
    const Panels panels(shape.value_dim);
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
        float* out_row = out + row * padded_value_dim() + panel.column;
        for (std::int64_t i = 0; i < panel.columns(); ++i) out_row[i] += sum[i];
      }
    }
  }

  /// A row of a sigmoid: partials add, and what it has seen nothing of stays as it is.
  void write_sum(const BlockForwardTensors& t, std::int64_t row, std::int64_t head, bool seen,
                 const float* sums) const {
    float* to = t.out.as<float>() + row * t.out.stride(0) + head * t.out.stride(1);
    for (std::int64_t d = 0; d < shape.value_dim; ++d) {
      if (t.mode == Mode::write) {
        to[d] = seen ? sums[d] : 0;
      } else if (seen) {
        to[d] += sums[d];
      }
    }
  }

  const BlockShape shape;
  const Scoring scoring;
};

}  // namespace

std::shared_ptr<const BlockPlan> plan_forward(const std::vector<Slice>& bands,
                                              const BlockShape& shape, const Scoring& scoring,
                                              const BlockPlace& place) {
  return std::make_shared<const ForwardPlan<ForwardKernel>>(bands, shape, scoring, place);
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

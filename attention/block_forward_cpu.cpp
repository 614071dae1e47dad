// Blocked forward on the CPU. K (transposed) and V are packed once a key/value head and shared by
// all its query heads and rows; then every (query head, block of rows) is one work item that
// streams over the key blocks. Kernels are AVX2; another instruction set would be a second
// namespace, chosen where `avx2::` is named below.

#include <omp.h>

#include <numeric>

#include "attention/block_impl.h"
#include "attention/gemm_tile_cpu.h"
#include "attention/merge.h"
#include "attention/pack_cpu.h"
#include "attention/scratch_cpu.h"
#include "attention/softmax_cpu.h"
#include "attention/tiles.h"

namespace longhaul::attention::detail {
namespace {

using namespace avx2;
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
  std::int64_t padded_dim() const { return round_up(s.dim, 8); }
  std::int64_t padded_value_dim() const { return round_up(s.value_dim, kTileColumns); }
  std::int64_t k_blocks() const { return (s.k_rows + kKBlock - 1) / kKBlock; }
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
        order(static_cast<std::size_t>(tiles.q_blocks())) {
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return tiles.work(a) > tiles.work(b); });
    thread_bytes =
        carved_bytes([this](Scratch& scratch) { ThreadScratch(scratch, geometry, tiles); });
  }
  std::int64_t scratch_bytes() const override {
    return carved_bytes([this](Scratch& scratch) { carve(scratch); });
  }

  struct Memory {
    float* packed;         // keys and values, [heads at once][key blocks]
    std::uint8_t* finite;  // whether a block's values all are
    std::byte* threads;
  };
  Memory carve(Scratch& scratch) const {
    const std::int64_t blocks = geometry.heads_at_once() * geometry.k_blocks();
    return {scratch.floats(blocks * geometry.block_floats()), scratch.array<std::uint8_t>(blocks),
            scratch.array<std::byte>(place().threads * thread_bytes)};
  }

  const Geometry geometry;
  const TilePlan tiles;
  std::vector<std::int64_t> order;  // rows of tiles, longest first
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
    const std::int64_t kv_heads = g.s.kv_heads, group = kv_heads == 0 ? 0 : g.s.heads / kv_heads,
                       at_once = g.heads_at_once(), k_blocks = g.k_blocks();
    for (std::int64_t first = 0; first < kv_heads; first += at_once) {
      const std::int64_t count = std::min(at_once, kv_heads - first);
      const std::int64_t items = plan.tiles.q_blocks() * count * group;
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
          const std::int64_t head = first * group + item % (count * group);
          const std::int64_t packed_head = item % (count * group) / group;
          attend(plan.order[static_cast<std::size_t>(item / (count * group))], head,
                 packed_head * k_blocks, scratch);
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

  void attend(std::int64_t qb, std::int64_t head, std::int64_t first_block,
              ThreadScratch& scratch) const {
    const std::int64_t rows = plan.tiles.q_count(qb);
    RowState state[kQBlock];
    if (plan.tiles.work(qb) > 0) {
      pack_rows(rows_of(t.q, head, qb * kQBlock, rows), scoring.scale, scratch.q, g.padded_dim());
      std::fill_n(scratch.out, rows * g.padded_value_dim(), 0.0f);
    } else if (t.mode == Mode::add) {
      return;
    }
    for (std::int64_t kb = 0; kb < g.k_blocks(); ++kb) {
      if (plan.tiles.kind(qb, kb) == TileKind::empty) continue;
      plan.tiles.describe(qb, kb, scratch.tile);
      const std::int64_t block = first_block + kb;
      attend_tile(packed_k(block), packed_v(block), memory.finite[block] != 0, scratch, state);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* sums = scratch.out + row * g.padded_value_dim();
      if (sigmoid()) {
        write_sum(qb * kQBlock + row, head, state[row].max != kMinusInfinity, sums);
      } else {
        write_row(qb * kQBlock + row, head, state[row], sums);
      }
    }
  }

  void attend_tile(const float* k_panels, const float* v_panels, bool finite,
                   const ThreadScratch& scratch, RowState* state) const {
    const TileRows& tile = scratch.tile;
    const std::int64_t rows = tile.rows(), ldo = g.padded_value_dim();
    Span hulls[kQBlock / kTileRows];
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      hulls[row / kTileRows] = tile.hull(row, std::min(kTileRows, rows - row));
    }
    for (std::int64_t c = 0; c < tile.keys(); c += kTileColumns) {
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.end <= c || hull.begin >= c + kTileColumns) continue;
        multiply<Operand::rows, Into::store>(
            std::min(kTileRows, rows - row), scratch.q + row * g.padded_dim(), g.padded_dim(),
            k_panels + c * g.s.dim, g.s.dim, scratch.scores + row * kScoreStride + c, kScoreStride);
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
        float* out_row = scratch.out + row * ldo;
        const __m256 by = _mm256_set1_ps(factor);
        for (std::int64_t d = 0; d < ldo; d += 8) {
          _mm256_storeu_ps(out_row + d, _mm256_mul_ps(_mm256_loadu_ps(out_row + d), by));
        }
      }
    }
    if (!finite && !tile.full()) return add_values_row_by_row(v_panels, scratch);
    for (std::int64_t d = 0; d < ldo; d += kTileColumns) {
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.empty()) continue;
        multiply<Operand::rows, Into::add>(
            std::min(kTileRows, rows - row), scratch.scores + row * kScoreStride + hull.begin,
            kScoreStride, v_panels + d * kKBlock + hull.begin * kTileColumns, hull.end - hull.begin,
            scratch.out + row * ldo + d, ldo);
      }
    }
  }

  /// The same sums in the same order over visible keys only: 0 * NaN would carry a masked value
  /// into the row.
  void add_values_row_by_row(const float* v_panels, const ThreadScratch& scratch) const {
    const TileRows& tile = scratch.tile;
    for (std::int64_t row = 0; row < tile.rows(); ++row) {
      for (std::int64_t d = 0; d < g.padded_value_dim(); d += kTileColumns) {
        float sum[kTileColumns] = {};
        for (const Span& span : tile.spans(row)) {
          multiply_tile<1, Operand::rows, Into::chain>(
              scratch.scores + row * kScoreStride + span.begin, kScoreStride,
              v_panels + d * kKBlock + span.begin * kTileColumns, span.end - span.begin, sum,
              kTileColumns);
        }
        float* out_row = scratch.out + row * g.padded_value_dim() + d;
        for (std::int64_t i = 0; i < kTileColumns; ++i) out_row[i] += sum[i];
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

  void write_row(std::int64_t row, std::int64_t head, const RowState& state,
                 const float* sums) const {
    float* to = t.out.as<float>() + row * t.out.stride(0) + head * t.out.stride(1);
    float* row_lse = t.lse.as<float>() + row * t.lse.stride(0) + head * t.lse.stride(1);
    const bool seen = state.max != kMinusInfinity;
    const Lse own = seen ? lse_of_sum(state.max, state.sum) : Lse{kMinusInfinity, 0};
    const float per_sum = seen ? 1 / state.sum : 0;
    if (t.mode == Mode::write) {
      own.store(row_lse);
      for (std::int64_t d = 0; d < g.s.value_dim; ++d) to[d] = seen ? sums[d] * per_sum : 0;
      return;
    }
    MergeWeights weights = merge_weights(Lse::load(row_lse), own);
    weights.lse.store(row_lse);
    if (weights.b == 0) return;
    if (weights.a == 0) {
      for (std::int64_t d = 0; d < g.s.value_dim; ++d) to[d] = sums[d] * per_sum;
    } else {
      weights.b /= static_cast<double>(state.sum);
      for (std::int64_t d = 0; d < g.s.value_dim; ++d) to[d] = weights.of(to[d], sums[d]);
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

std::shared_ptr<const BlockPlan> cpu_plan_forward(std::vector<Slice> bands, const BlockShape& shape,
                                                  const Scoring& scoring, const BlockPlace& place) {
  if (amx_computes(shape, scoring)) return amx_plan_forward(bands, shape, scoring, place);
  return std::make_shared<const ForwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

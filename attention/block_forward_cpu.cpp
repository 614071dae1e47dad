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

struct ThreadScratch {
  float *q, *scores, *out;
  ThreadScratch(Scratch& scratch, std::int64_t dim, std::int64_t value_dim)
      : q(scratch.floats(kQBlock * round_up(dim, 8))),
        scores(scratch.floats(kQBlock * kScoreStride)),
        out(scratch.floats(kQBlock * round_up(value_dim, kTileColumns))) {}
};

class Forward {
 public:
  ConstTensorView q, k, v;
  std::vector<Slice> bands;
  Scoring scoring;
  TensorView out, lse;
  Mode mode;
  int threads;
  std::byte *pack_memory = nullptr, *thread_memory = nullptr;

  bool sigmoid() const { return scoring.weighting == Weighting::sigmoid; }
  std::int64_t heads() const { return q.size(1); }
  std::int64_t kv_heads() const { return k.size(1); }
  std::int64_t dim() const { return q.size(2); }
  std::int64_t value_dim() const { return v.size(2); }
  std::int64_t padded_value_dim() const { return round_up(value_dim(), kTileColumns); }
  std::int64_t k_blocks() const { return (k.size(0) + kKBlock - 1) / kKBlock; }

  /// Packed bytes of one key/value head.
  std::int64_t head_bytes() const {
    return k_blocks() * kKBlock * (dim() + padded_value_dim()) * 4;
  }
  std::int64_t heads_at_once() const {
    return std::clamp<std::int64_t>(kPackBytes / std::max<std::int64_t>(1, head_bytes()), 1,
                                    std::max<std::int64_t>(1, kv_heads()));
  }
  std::int64_t thread_bytes() const {
    Scratch scratch;
    ThreadScratch(scratch, dim(), value_dim());
    return scratch.bytes();
  }

  void run() const {
    const TilePlan plan(bands, q.size(0), k.size(0), kQBlock, kKBlock);
    std::vector<std::int64_t> order(static_cast<std::size_t>(plan.q_blocks()));  // longest first
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return plan.work(a) > plan.work(b); });
    std::vector<std::uint8_t> finite(static_cast<std::size_t>(heads_at_once() * k_blocks()));
    const std::int64_t group = kv_heads() == 0 ? 0 : heads() / kv_heads();
    for (std::int64_t first = 0; first < kv_heads(); first += heads_at_once()) {
      const std::int64_t count = std::min(heads_at_once(), kv_heads() - first);
      const std::int64_t items = plan.q_blocks() * count * group;
#pragma omp parallel num_threads(threads)
      {
#pragma omp for schedule(dynamic)
        for (std::int64_t block = 0; block < count * k_blocks(); ++block) {
          if (plan.used(block % k_blocks()))
            finite[static_cast<std::size_t>(block)] = pack(plan, first, block);
        }
        Scratch memory(thread_memory + omp_get_thread_num() * thread_bytes());
        const ThreadScratch scratch(memory, dim(), value_dim());
        TileRows tile;
#pragma omp for schedule(dynamic)
        for (std::int64_t item = 0; item < items; ++item) {
          const std::int64_t head = first * group + item % (count * group);
          const std::int64_t packed_head = item % (count * group) / group;
          attend(plan, order[static_cast<std::size_t>(item / (count * group))], head,
                 packed_head * k_blocks(), finite, scratch, tile);
        }
      }
    }
  }

 private:
  float* packed_k(std::int64_t block) const {
    return reinterpret_cast<float*>(pack_memory) + block * kKBlock * (dim() + padded_value_dim());
  }
  float* packed_v(std::int64_t block) const { return packed_k(block) + kKBlock * dim(); }

  /// Returns whether the values are all finite.
  bool pack(const TilePlan& plan, std::int64_t first_head, std::int64_t block) const {
    const std::int64_t head = first_head + block / k_blocks(), kb = block % k_blocks(),
                       count = plan.k_count(kb);
    pack_transposed(rows_of(k, head, kb * kKBlock, count), packed_k(block));
    return pack_panels(rows_of(v, head, kb * kKBlock, count), 1, packed_v(block), kKBlock);
  }

  void attend(const TilePlan& plan, std::int64_t qb, std::int64_t head, std::int64_t first_block,
              const std::vector<std::uint8_t>& finite, const ThreadScratch& scratch,
              TileRows& tile) const {
    const std::int64_t rows = plan.q_count(qb);
    RowState state[kQBlock];
    if (plan.work(qb) > 0) {
      pack_rows(rows_of(q, head, qb * kQBlock, rows), scoring.scale, scratch.q, round_up(dim(), 8));
      std::fill_n(scratch.out, rows * padded_value_dim(), 0.0f);
    } else if (mode == Mode::add) {
      return;
    }
    for (std::int64_t kb = 0; kb < k_blocks(); ++kb) {
      if (plan.kind(qb, kb) == TileKind::empty) continue;
      plan.describe(qb, kb, tile);
      const std::int64_t block = first_block + kb;
      attend_tile(packed_k(block), packed_v(block), finite[static_cast<std::size_t>(block)] != 0,
                  scratch, state, tile);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* sums = scratch.out + row * padded_value_dim();
      if (sigmoid()) {
        write_sum(qb * kQBlock + row, head, state[row].max != kMinusInfinity, sums);
      } else {
        write_row(qb * kQBlock + row, head, state[row], sums);
      }
    }
  }

  void attend_tile(const float* k_panels, const float* v_panels, bool finite,
                   const ThreadScratch& scratch, RowState* state, const TileRows& tile) const {
    const std::int64_t rows = tile.rows(), ldo = padded_value_dim();
    Span hulls[kQBlock / kTileRows];
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      hulls[row / kTileRows] = tile.hull(row, std::min(kTileRows, rows - row));
    }
    for (std::int64_t c = 0; c < tile.keys(); c += kTileColumns) {
      for (std::int64_t row = 0; row < rows; row += kTileRows) {
        const Span hull = hulls[row / kTileRows];
        if (hull.end <= c || hull.begin >= c + kTileColumns) continue;
        multiply<Operand::rows, Into::store>(std::min(kTileRows, rows - row),
                                             scratch.q + row * round_up(dim(), 8),
                                             round_up(dim(), 8), k_panels + c * dim(), dim(),
                                             scratch.scores + row * kScoreStride + c, kScoreStride);
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
    if (!finite && !tile.full()) return add_values_row_by_row(v_panels, scratch, tile);
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
  void add_values_row_by_row(const float* v_panels, const ThreadScratch& scratch,
                             const TileRows& tile) const {
    for (std::int64_t row = 0; row < tile.rows(); ++row) {
      for (std::int64_t d = 0; d < padded_value_dim(); d += kTileColumns) {
        float sum[kTileColumns] = {};
        for (const Span& span : tile.spans(row)) {
          multiply_tile<1, Operand::rows, Into::chain>(
              scratch.scores + row * kScoreStride + span.begin, kScoreStride,
              v_panels + d * kKBlock + span.begin * kTileColumns, span.end - span.begin, sum,
              kTileColumns);
        }
        float* out_row = scratch.out + row * padded_value_dim() + d;
        for (std::int64_t i = 0; i < kTileColumns; ++i) out_row[i] += sum[i];
      }
    }
  }

  /// A row of a sigmoid: partials add, and what it has seen nothing of stays as it is.
  void write_sum(std::int64_t row, std::int64_t head, bool seen, const float* sums) const {
    float* to = out.as<float>() + row * out.stride(0) + head * out.stride(1);
    for (std::int64_t d = 0; d < value_dim(); ++d) {
      if (mode == Mode::write) {
        to[d] = seen ? sums[d] : 0;
      } else if (seen) {
        to[d] += sums[d];
      }
    }
  }

  void write_row(std::int64_t row, std::int64_t head, const RowState& state,
                 const float* sums) const {
    float* to = out.as<float>() + row * out.stride(0) + head * out.stride(1);
    float& row_lse = lse.as<float>()[row * lse.stride(0) + head * lse.stride(1)];
    const bool seen = state.max != kMinusInfinity;
    const float own = seen ? state.max + std::log(state.sum) : kMinusInfinity;
    const float per_sum = seen ? 1 / state.sum : 0;
    if (mode == Mode::write) {
      row_lse = own;
      for (std::int64_t d = 0; d < value_dim(); ++d) to[d] = seen ? sums[d] * per_sum : 0;
      return;
    }
    const MergeWeights weights = merge_weights(row_lse, own);
    row_lse = weights.lse;
    if (weights.b == 0) return;
    const float b = weights.b * per_sum;
    if (weights.a == 0) {
      for (std::int64_t d = 0; d < value_dim(); ++d) to[d] = b * sums[d];
    } else {
      for (std::int64_t d = 0; d < value_dim(); ++d) to[d] = weights.a * to[d] + b * sums[d];
    }
  }
};

}  // namespace

void cpu_block_forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                       std::vector<Slice> bands, const Scoring& scoring, TensorView out,
                       TensorView lse, Mode mode, const Stream& stream) {
  Forward forward{q, k, v, std::move(bands), scoring, out, lse, mode, stream.threads()};
  const runtime::Buffer packs = stream.allocate(forward.heads_at_once() * forward.head_bytes());
  const runtime::Buffer scratch = stream.allocate(forward.threads * forward.thread_bytes());
  forward.pack_memory = packs.data();
  forward.thread_memory = scratch.data();
  stream.cpu_task([forward = std::move(forward)] { forward.run(); });
}

}  // namespace longhaul::attention::detail

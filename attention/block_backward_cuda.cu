// Backward of the block contract, from the global LSE and delta. Two kernels, each of which owns
// what it writes: dq by tiles of query rows, dk and dv by tiles of key rows. Scores are computed
// twice, and nothing is added atomically: the order of every sum is fixed. Source: FlashAttention-2
// (Dao 2023).

#include "attention/block_impl.h"
#include "attention/block_tile.cuh"
#include "attention/sdpa_block_impl.h"

namespace longhaul::attention::detail {
namespace {

/// target <- or += factor * sum, for the rows of this warp.
template <int kCols>
__device__ void store_rows(const float (&sum)[kWarpRows][kCols], float factor, Interval rows,
                           int dim, const Operand<float>& target, int head, bool add) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const std::int64_t row = rows.begin + r;
    if (row >= rows.end) continue;
    float* at = target.head(head) + row * target.row_stride;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const int d = 32 * c + lane;
      if (d < dim) at[d] = (add ? at[d] : 0.0f) + factor * sum[r][c];
    }
  }
}

template <int kCols>
__device__ void clear(float (&sum)[kWarpRows][kCols]) {
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
    for (int c = 0; c < kCols; ++c) sum[r][c] = 0.0f;
  }
}

template <class T>
struct BackwardOperands {
  Operand<const T> q, k, v, dout;
  Operand<const float> lse, delta;
};

template <int kCols, bool kMasked>
__device__ void add_to_dq(const Band& band, const Problem& problem, std::int64_t row,
                          std::int64_t key, const float* q_rows, const float* dout_rows,
                          const float* k_tile, const float* v_tile, const Lse (&lse)[kWarpRows],
                          const float (&delta)[kWarpRows], float (&dq)[kWarpRows][kCols]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Window seen = window(rows_seeing(band, {key + lane, key + lane + 1}), row);
  float score[kWarpRows], ds[kWarpRows];
  dot_rows<kCols>(q_rows, k_tile, problem.dim, score);
  dot_rows<kCols>(dout_rows, v_tile, problem.value_dim, ds);
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    weight_gradient(problem, lse[r], delta[r], score[r], ds[r]);
    if (kMasked && !seen.holds(r)) ds[r] = 0.0f;
  }
  accumulate_rows<kCols, kMasked>(ds, k_tile, dq);
}

template <int kCols, class T>
__global__ void __launch_bounds__(kThreads, 1)
    dq_kernel(BackwardOperands<T> in, Operand<float> dq, Problem problem, bool add) {
  float* q_tile = dynamic_shared();
  float* dout_tile = q_tile + kOwnRows * kTileStride<kCols>;
  float* k_tile = dout_tile + kOwnRows * kTileStride<kCols>;
  float* v_tile = k_tile + kOtherRows * kTileStride<kCols>;
  const int head = static_cast<int>(blockIdx.y), kv_head = problem.kv_head(head);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kOwnRows;
  const Interval rows{begin, smaller(begin + kOwnRows, problem.q_rows)};
  const Interval mine = warp_rows(rows);
  const int my_tile = static_cast<int>(threadIdx.x) / 32 * kWarpRows * kTileStride<kCols>;
  const int row_count = static_cast<int>(rows.end - rows.begin);
  load_tile<kCols, kOwnRows>(q_tile, in.q.head(head), in.q.row_stride, rows.begin, row_count,
                             problem.dim);
  load_tile<kCols, kOwnRows>(dout_tile, in.dout.head(head), in.dout.row_stride, rows.begin,
                             row_count, problem.value_dim);
  Lse lse[kWarpRows];
  float delta[kWarpRows], sum[kWarpRows][kCols];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const std::int64_t row = mine.begin + r;
    const bool has = !problem.sigmoid && row < mine.end;
    lse[r] = has ? Lse::load(in.lse.head(head) + row * in.lse.row_stride) : Lse{0.0f, 0.0f};
    delta[r] = has ? in.delta.head(head)[row * in.delta.row_stride] : 0.0f;
  }
  clear(sum);
  for_each_band(problem, [&](const Band& band) {
    const Interval keys = keys_seen(band, rows);
    const Interval my_keys = keys_seen(band, mine);
    for (std::int64_t key = keys.begin; key < keys.end; key += kOtherRows) {
      const int count = static_cast<int>(smaller(kOtherRows, keys.end - key));
      __syncthreads();
      load_tile<kCols, kOtherRows>(k_tile, in.k.head(kv_head), in.k.row_stride, key, count,
                                   problem.dim);
      load_tile<kCols, kOtherRows>(v_tile, in.v.head(kv_head), in.v.row_stride, key, count,
                                   problem.value_dim);
      __syncthreads();
      if (!overlap(my_keys, {key, key + count})) continue;
      if (covers(band, mine, {key, key + kOtherRows})) {
        add_to_dq<kCols, false>(band, problem, mine.begin, key, q_tile + my_tile,
                                dout_tile + my_tile, k_tile, v_tile, lse, delta, sum);
      } else {
        add_to_dq<kCols, true>(band, problem, mine.begin, key, q_tile + my_tile,
                               dout_tile + my_tile, k_tile, v_tile, lse, delta, sum);
      }
    }
  });
  store_rows(sum, problem.scale, mine, problem.dim, dq, head, add);
}

/// `lse` and `delta` belong to this lane's query row.
template <int kCols, bool kMasked>
__device__ void add_to_dkv(const Band& band, const Problem& problem, std::int64_t row,
                           std::int64_t key, const float* k_rows, const float* v_rows,
                           const float* q_tile, const float* dout_tile, Lse lse, float delta,
                           float (&dk)[kWarpRows][kCols], float (&dv)[kWarpRows][kCols]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Window seen = window(keys_seen(band, {row + lane, row + lane + 1}), key);
  float p[kWarpRows], ds[kWarpRows];
  dot_rows<kCols>(k_rows, q_tile, problem.dim, p);
  dot_rows<kCols>(v_rows, dout_tile, problem.value_dim, ds);
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    weight_gradient(problem, lse, delta, p[r], ds[r]);
    if (kMasked && !seen.holds(r)) p[r] = ds[r] = 0.0f;
  }
  accumulate_rows<kCols, kMasked>(p, dout_tile, dv);
  accumulate_rows<kCols, kMasked>(ds, q_tile, dk);
}

template <int kCols, class T>
__global__ void __launch_bounds__(kThreads, 1)
    dkv_kernel(BackwardOperands<T> in, Operand<float> dk, Operand<float> dv, Problem problem,
               bool add) {
  float* k_tile = dynamic_shared();
  float* v_tile = k_tile + kOwnRows * kTileStride<kCols>;
  float* q_tile = v_tile + kOwnRows * kTileStride<kCols>;
  float* dout_tile = q_tile + kOtherRows * kTileStride<kCols>;
  const int kv_head = static_cast<int>(blockIdx.y), group = problem.heads / problem.kv_heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kOwnRows;
  const Interval keys{begin, smaller(begin + kOwnRows, problem.k_rows)};
  const Interval mine = warp_rows(keys);
  const int my_tile = static_cast<int>(threadIdx.x) / 32 * kWarpRows * kTileStride<kCols>;
  const int key_count = static_cast<int>(keys.end - keys.begin);
  load_tile<kCols, kOwnRows>(k_tile, in.k.head(kv_head), in.k.row_stride, keys.begin, key_count,
                             problem.dim);
  load_tile<kCols, kOwnRows>(v_tile, in.v.head(kv_head), in.v.row_stride, keys.begin, key_count,
                             problem.value_dim);
  float dk_sum[kWarpRows][kCols], dv_sum[kWarpRows][kCols];
  clear(dk_sum);
  clear(dv_sum);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for_each_band(problem, [&](const Band& band) {
      const Interval rows = rows_seeing(band, keys);
      const Interval my_rows = rows_seeing(band, mine);
      for (std::int64_t row = rows.begin; row < rows.end; row += kOtherRows) {
        const int count = static_cast<int>(smaller(kOtherRows, rows.end - row));
        __syncthreads();
        load_tile<kCols, kOtherRows>(q_tile, in.q.head(head), in.q.row_stride, row, count,
                                     problem.dim);
        load_tile<kCols, kOtherRows>(dout_tile, in.dout.head(head), in.dout.row_stride, row, count,
                                     problem.value_dim);
        __syncthreads();
        if (!overlap(my_rows, {row, row + count})) continue;
        const bool has = !problem.sigmoid && lane < count;
        const Lse lse =
            has ? Lse::load(in.lse.head(head) + (row + lane) * in.lse.row_stride) : Lse{0.0f, 0.0f};
        const float delta = has ? in.delta.head(head)[(row + lane) * in.delta.row_stride] : 0.0f;
        if (covers(band, {row, row + kOtherRows}, mine)) {
          add_to_dkv<kCols, false>(band, problem, row, mine.begin, k_tile + my_tile,
                                   v_tile + my_tile, q_tile, dout_tile, lse, delta, dk_sum, dv_sum);
        } else {
          add_to_dkv<kCols, true>(band, problem, row, mine.begin, k_tile + my_tile,
                                  v_tile + my_tile, q_tile, dout_tile, lse, delta, dk_sum, dv_sum);
        }
      }
    });
  }
  store_rows(dk_sum, problem.scale, mine, problem.dim, dk, kv_head, add);
  store_rows(dv_sum, 1.0f, mine, problem.value_dim, dv, kv_head, add);
}

class BackwardPlan final : public CudaPlan {
 public:
  BackwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
               const BlockPlace& place)
      : CudaPlan(Pass::backward, bands, shape, scoring, place) {}

 protected:
  void run_backward(const BlockBackwardTensors& t, const BlockMemory& memory,
                    const runtime::Stream& stream) const override {
    const BlockShape& s = shape();
    const BlockBackwardInputs& in = t.inputs;
    const bool some = !sees_nothing();
    const bool write_dq = s.q_rows > 0 && s.heads > 0 && (some || t.dq_mode == Mode::write);
    const bool write_dkv = s.k_rows > 0 && s.kv_heads > 0 && (some || t.dkv_mode == Mode::write);
    with_columns(std::max(s.dim, s.value_dim), [&](auto columns) {
      constexpr int kCols = decltype(columns)::value;
      constexpr std::int64_t kSharedBytes = shared_bytes<kCols>(Pass::backward);
      with_activation(s.activation, [&](auto activation) {
        using T = decltype(activation);
        const BackwardOperands<T> operands{operand<T>(in.q),       operand<T>(in.k),
                                           operand<T>(in.v),       operand<T>(in.dout),
                                           operand<float>(in.lse), operand<float>(in.delta)};
        if (write_dq) {
          launch(dq_kernel<kCols, T>,
                 dim3(tiles(s.q_rows, kOwnRows), static_cast<unsigned>(s.heads)), kThreads,
                 kSharedBytes, stream, operands, output_operand(t.dq), problem(memory),
                 t.dq_mode == Mode::add);
        }
        if (write_dkv) {
          launch(dkv_kernel<kCols, T>,
                 dim3(tiles(s.k_rows, kOwnRows), static_cast<unsigned>(s.kv_heads)), kThreads,
                 kSharedBytes, stream, operands, output_operand(t.dk), output_operand(t.dv),
                 problem(memory), t.dkv_mode == Mode::add);
        }
      });
    });
  }
};

}  // namespace

std::shared_ptr<const BlockPlan> cuda_plan_backward(std::vector<Slice> bands,
                                                    const BlockShape& shape, const Scoring& scoring,
                                                    const BlockPlace& place) {
  if (auto plan = sdpa_plan(Pass::backward, bands, shape, scoring, place)) return plan;
  return std::make_shared<const BackwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

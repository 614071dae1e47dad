// Forward of the block contract: online softmax, or a plain sum of sigmoid weights, over tiles of
// keys, a row's state in the registers of its warp. Source: FlashAttention-2 (Dao 2023),
// FlashSigmoid (Ramapuram et al. 2024).

#include "attention/block_impl.h"
#include "attention/block_tile.cuh"
#include "attention/sdpa_block_impl.h"

namespace longhaul::attention::detail {
namespace {

/// What a warp knows of its rows so far. `sum` is this lane's part of the row's sum.
template <int kCols>
struct RowState {
  float max[kWarpRows];
  float sum[kWarpRows];
  float out[kWarpRows][kCols];
};

/// Takes the tile of keys that begins at `key` into the state.
template <int kCols, bool kMasked>
__device__ void attend(const Band& band, const Problem& problem, std::int64_t row, std::int64_t key,
                       const float* q_rows, const float* k_tile, const float* v_tile,
                       RowState<kCols>& state) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Window seen = window(rows_seeing(band, {key + lane, key + lane + 1}), row);
  float weight[kWarpRows];
  dot_rows<kCols>(q_rows, k_tile, problem.dim, weight);
  score_rows(problem, weight);
  if (problem.sigmoid) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      weight[r] = kMasked && !seen.holds(r) ? 0.0f : sigmoid(weight[r] + problem.bias).value;
    }
    return accumulate_rows<kCols, kMasked>(weight, v_tile, state.out);
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const float score = kMasked && !seen.holds(r) ? -INFINITY : weight[r];
    const float top = fmaxf(state.max[r], warp_max(score));
    // While no key is visible the maximum is -inf, and -inf - -inf must not be asked.
    const float shrink = state.max[r] == -INFINITY ? 0.0f : expf(state.max[r] - top);
    weight[r] = score == -INFINITY ? 0.0f : expf(score - top);
    state.max[r] = top;
    state.sum[r] = state.sum[r] * shrink + weight[r];
#pragma unroll
    for (int c = 0; c < kCols; ++c) state.out[r][c] *= shrink;
  }
  accumulate_rows<kCols, kMasked>(weight, v_tile, state.out);
}

template <int kCols>
__device__ void store(RowState<kCols>& state, Interval rows, int value_dim,
                      const Operand<float>& out, const Operand<float>& lse, int head, bool add) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const float sum = warp_sum(state.sum[r]);
    const std::int64_t row = rows.begin + r;
    if (row >= rows.end) continue;
    const bool none = sum == 0.0f;  // else the largest score alone adds 1
    if (add && none) continue;
    float* lse_at = lse.head(head) + row * lse.row_stride;
    const Lse own_lse = none ? Lse{-INFINITY, 0.0f} : lse_of_sum(state.max[r], sum);
    const MergeWeights weights =
        add ? merge_weights(Lse::load(lse_at), own_lse) : MergeWeights{0.0, 1.0, own_lse};
    __syncwarp();  // every lane has read the old LSE
    if (lane == 0) weights.lse.store(lse_at);
    float* out_at = out.head(head) + row * out.row_stride;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const int d = 32 * c + lane;
      if (d >= value_dim) continue;
      const float own = none ? 0.0f : state.out[r][c] / sum;
      out_at[d] = weights.a == 0.0 ? own : weights.of(out_at[d], own);
    }
  }
}

/// A sigmoid's rows: partials add.
template <int kCols>
__device__ void store_sums(const RowState<kCols>& state, Interval rows, int value_dim,
                           const Operand<float>& out, int head, bool add) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const std::int64_t row = rows.begin + r;
    if (row >= rows.end) continue;
    float* out_at = out.head(head) + row * out.row_stride;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const int d = 32 * c + lane;
      if (d < value_dim) out_at[d] = (add ? out_at[d] : 0.0f) + state.out[r][c];
    }
  }
}

template <int kCols, class T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(Operand<const T> q, Operand<const T> k, Operand<const T> v, Operand<float> out,
                   Operand<float> lse, Problem problem, bool add) {
  float* q_tile = dynamic_shared();
  float* k_tile = q_tile + kOwnRows * kTileStride<kCols>;
  float* v_tile = k_tile + kOtherRows * kTileStride<kCols>;
  const int head = static_cast<int>(blockIdx.y), kv_head = problem.kv_head(head);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kOwnRows;
  const Interval rows{begin, smaller(begin + kOwnRows, problem.q_rows)};
  const Interval mine = warp_rows(rows);
  const float* my_q = q_tile + threadIdx.x / 32 * kWarpRows * kTileStride<kCols>;
  load_tile<kCols, kOwnRows>(q_tile, q.head(head), q.row_stride, rows.begin,
                             static_cast<int>(rows.end - rows.begin), problem.dim);
  RowState<kCols> state;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    state.max[r] = -INFINITY;
    state.sum[r] = 0.0f;
#pragma unroll
    for (int c = 0; c < kCols; ++c) state.out[r][c] = 0.0f;
  }
  for_each_band(problem, [&](const Band& band) {
    const Interval keys = keys_seen(band, rows);
    const Interval my_keys = keys_seen(band, mine);
    for (std::int64_t key = keys.begin; key < keys.end; key += kOtherRows) {
      const int count = static_cast<int>(smaller(kOtherRows, keys.end - key));
      __syncthreads();  // the tile before is no longer read
      load_tile<kCols, kOtherRows>(k_tile, k.head(kv_head), k.row_stride, key, count, problem.dim);
      load_tile<kCols, kOtherRows>(v_tile, v.head(kv_head), v.row_stride, key, count,
                                   problem.value_dim);
      __syncthreads();
      if (!overlap(my_keys, {key, key + count})) continue;
      if (covers(band, mine, {key, key + kOtherRows})) {
        attend<kCols, false>(band, problem, mine.begin, key, my_q, k_tile, v_tile, state);
      } else {
        attend<kCols, true>(band, problem, mine.begin, key, my_q, k_tile, v_tile, state);
      }
    }
  });
  if (problem.sigmoid) {
    store_sums(state, mine, problem.value_dim, out, head, add);
  } else {
    store(state, mine, problem.value_dim, out, lse, head, add);
  }
}

class ForwardPlan final : public CudaPlan {
 public:
  ForwardPlan(const std::vector<Slice>& bands, const BlockShape& shape, const Scoring& scoring,
              const BlockPlace& place)
      : CudaPlan(Pass::forward, bands, shape, scoring, place) {}

 protected:
  void run_forward(const BlockForwardTensors& t, const BlockMemory& memory,
                   const runtime::Stream& stream) const override {
    const BlockShape& s = shape();
    const bool add = t.mode == Mode::add;
    if (s.q_rows == 0 || s.heads == 0 || (add && sees_nothing())) return;
    with_columns(std::max(s.dim, s.value_dim), [&](auto columns) {
      constexpr int kCols = decltype(columns)::value;
      with_activation(s.activation, [&](auto activation) {
        using T = decltype(activation);
        launch(forward_kernel<kCols, T>,
               dim3(tiles(s.q_rows, kOwnRows), static_cast<unsigned>(s.heads)), kThreads,
               shared_bytes<kCols>(Pass::forward), stream, operand<T>(t.q), operand<T>(t.k),
               operand<T>(t.v), output_operand(t.out), output_operand(t.lse), problem(memory), add);
      });
    });
  }
};

}  // namespace

std::shared_ptr<const BlockPlan> cuda_plan_forward(std::vector<Slice> bands,
                                                   const BlockShape& shape, const Scoring& scoring,
                                                   const BlockPlace& place) {
  if (auto plan = sdpa_plan(Pass::forward, bands, shape, scoring, place)) return plan;
  return std::make_shared<const ForwardPlan>(bands, shape, scoring, place);
}

}  // namespace longhaul::attention::detail

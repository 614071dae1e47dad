#pragma once
// What the forward and the backward kernels share. Private to attention/.
//
// One thread block of eight warps owns kOwnRows rows (queries, or keys in the dk/dv kernel) and
// walks over tiles of kOtherRows rows of the other side. Both lie in shared memory as fp32. A warp
// has kWarpRows own rows; its lane l has row l of the other tile while scores are computed, and
// columns l, l + 32, ... of the rows while they are accumulated. So scores never leave registers,
// and a weight reaches the other lanes by shuffle.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

#include "attention/band_tiles.h"
#include "attention/block_plan.h"
#include "attention/launch.cuh"
#include "attention/merge.h"
#include "runtime/float_device.cuh"

namespace longhaul::attention::detail {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 8;
constexpr int kOwnRows = kWarps * kWarpRows;
constexpr int kOtherRows = 32;  // one a lane

/// What a kernel needs to know of its call besides the operands.
struct Problem {
  std::int64_t q_rows, k_rows;
  int heads, kv_heads, dim, value_dim;
  float scale, softcap, bias;
  bool sigmoid;
  const Band* bands;
  int band_count;
  __device__ int kv_head(int head) const { return head / (heads / kv_heads); }
};

/// A row of a tile: kCols * 32 floats, and four more so that lanes that read 16 bytes of
/// neighbouring rows hit different banks.
template <int kCols>
constexpr int kTileStride = 32 * kCols + 4;

/// tile[r][d] <- source row begin + r for r < count, zero elsewhere. All threads of the block.
template <int kCols, int kRows, class T>
__device__ void load_tile(float* tile, const T* source, std::int64_t row_stride, std::int64_t begin,
                          int count, int dim) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = warp; row < kRows; row += kWarps) {
    const T* from = source + (begin + row) * row_stride;
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
      const int d = 32 * col + lane;
      tile[row * kTileStride<kCols> + d] =
          row < count && d < dim ? runtime::detail::load_float(from[d]) : 0.0f;
    }
  }
}

/// result[r] = own row r . this lane's row of the other tile.
template <int kCols>
__device__ void dot_rows(const float* own, const float* other, int dim,
                         float (&result)[kWarpRows]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) result[r] = 0.0f;
  // More would spill registers of wide rows.
  [[maybe_unused]] constexpr int kUnrolled = kCols > 4 ? 1 : 4;
#pragma unroll kUnrolled
  for (int d = 0; d < dim; d += 4) {  // the tiles are zero from dim to the next multiple of 32
    const float4 b = *reinterpret_cast<const float4*>(other + lane * kTileStride<kCols> + d);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(own + r * kTileStride<kCols> + d);
      result[r] = fmaf(a.x, b.x, result[r]);
      result[r] = fmaf(a.y, b.y, result[r]);
      result[r] = fmaf(a.z, b.z, result[r]);
      result[r] = fmaf(a.w, b.w, result[r]);
    }
  }
}

/// sum[r][c] += weight(r, lane j) * other row j, column 32 c + lane, over the other tile's rows.
/// With kMasked, a weight of zero adds nothing, whatever the row holds.
template <int kCols, bool kMasked>
__device__ void accumulate_rows(const float (&weight)[kWarpRows], const float* other,
                                float (&sum)[kWarpRows][kCols]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < kOtherRows; ++j) {
    float value[kCols];
#pragma unroll
    for (int c = 0; c < kCols; ++c) value[c] = other[j * kTileStride<kCols> + 32 * c + lane];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float w = __shfl_sync(kAllLanes, weight[r], j);
      if (kMasked && w == 0.0f) continue;
#pragma unroll
      for (int c = 0; c < kCols; ++c) sum[r][c] = fmaf(w, value[c], sum[r][c]);
    }
  }
}

/// The score of a product, rounded to float once and not fused into what is done with it next:
/// forward and backward must see the same one, or where scores are large their difference would
/// show in exp(score - LSE).
__device__ inline float scaled(const Problem& problem, float product) {
  return fmaf(product, problem.scale, -0.0f);
}

/// result[r] -> the scores that weights are made of.
__device__ inline void score_rows(const Problem& problem, float (&result)[kWarpRows]) {
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    result[r] = scaled(problem, result[r]);
    if (problem.softcap > 0.0f) result[r] = problem.softcap * tanhf(result[r] / problem.softcap);
  }
}

/// Also ds: dout v -> (dout v - delta) times the slope of the cap, 1 - tanh^2 without
/// cancellation. What follows takes delta as 0.
__device__ inline void cap_backward(float softcap, float delta, float& score, float& ds) {
  const float x = score / softcap, e = expf(-2.0f * fabsf(x)), by = 1.0f / (1.0f + e);
  score = softcap * tanhf(x);
  ds = (ds - delta) * (4.0f * e * by * by);
}

/// 1 / (1 + exp(-x)) and its derivative; neither end cancels.
struct Sigmoid {
  float value, slope;
};
__device__ inline Sigmoid sigmoid(float x) {
  const float t = expf(-fabsf(x)), high = 1.0f / (1.0f + t), low = t * high;
  return {x >= 0.0f ? high : low, low * high};
}

/// One pair in backward. p: q . k -> weight; ds: dout v -> gradient of the scaled product.
__device__ inline void weight_gradient(const Problem& problem, Lse lse, float delta, float& p,
                                       float& ds) {
  p = scaled(problem, p);
  if (problem.softcap > 0.0f) {
    cap_backward(problem.softcap, delta, p, ds);
    delta = 0.0f;
  }
  if (problem.sigmoid) {
    const Sigmoid weight = sigmoid(p + problem.bias);
    p = weight.value;
    ds *= weight.slope;
  } else {
    p = expf((p - lse.high) - lse.low);
    ds = p * (ds - delta);
  }
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
/// The same sum, in the same order, on every lane.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

/// Walks over the bands of a call, 32 at a time through shared memory: calls body(band) on all
/// threads.
template <class Body>
__device__ void for_each_band(const Problem& problem, const Body& body) {
  __shared__ Band chunk[32];
  for (int base = 0; base < problem.band_count; base += 32) {
    const int count = min(32, problem.band_count - base);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count)
      chunk[threadIdx.x] = problem.bands[base + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < count; ++i) body(chunk[i]);
  }
}

/// This warp's part of the block's own rows; empty past the end.
__device__ inline Interval warp_rows(Interval own) {
  const std::int64_t begin = own.begin + static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  return {begin, smaller(begin + kWarpRows, own.end)};
}
/// The part of `seen` among the warp's own rows, which begin at `begin`: what a lane's row pairs
/// with.
struct Window {
  int begin, end;
  __device__ bool holds(int r) const { return begin <= r && r < end; }
};
__device__ inline Window window(Interval seen, std::int64_t begin) {
  return {static_cast<int>(larger(0, smaller(seen.begin - begin, kWarpRows))),
          static_cast<int>(larger(0, smaller(seen.end - begin, kWarpRows)))};
}
__device__ inline bool overlap(Interval a, Interval b) {
  return a.begin < b.end && b.begin < a.end;
}

/// Of a block, in bytes: forward keeps its own rows and tiles of two operands, backward has two
/// own.
template <int kCols>
constexpr std::int64_t shared_bytes(Pass pass) {
  const int own = pass == Pass::forward ? kOwnRows : 2 * kOwnRows;
  return std::int64_t{own + 2 * kOtherRows} * kTileStride<kCols> * 4;
}

/// A plan of these kernels: its bands are the table.
class CudaPlan : public BlockPlan {
 public:
  CudaPlan(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
           const Scoring& scoring, const BlockPlace& place);
  std::int64_t scratch_bytes() const override { return 0; }
  std::span<const std::byte> table() const override { return std::as_bytes(std::span(bands_)); }

 protected:
  bool sees_nothing() const { return bands_.empty(); }
  Problem problem(const BlockMemory& memory) const;

 private:
  std::vector<Band> bands_;
};

/// Calls body(std::integral_constant<int, columns of 32>) for the narrowest tile that holds the
/// widest row.
template <class Body>
void with_columns(std::int64_t widest, const Body& body) {
  if (widest <= 64) return body(std::integral_constant<int, 2>());
  if (widest <= 128) return body(std::integral_constant<int, 4>());
  if (widest <= 256) return body(std::integral_constant<int, 8>());
  runtime::fail(runtime::ExitCode::config,
                "the CUDA attention kernels take head dims up to 256, got ", widest);
}

}  // namespace longhaul::attention::detail

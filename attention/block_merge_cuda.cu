// The small kernels of the block contract: delta, merge, sinks; and what all plans of the CUDA
// kernels share.

#include <bit>

#include "attention/block_impl.h"
#include "attention/block_tile.cuh"
#include "runtime/kernel.cuh"

namespace longhaul::attention::detail {
namespace {

/// One warp a (row, head); rows across the grid's x, heads across y.
struct WarpItem {
  std::int64_t row;
  int head;
  int lane;
};
__device__ WarpItem warp_item() {
  return {static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32,
          static_cast<int>(blockIdx.y), static_cast<int>(threadIdx.x) % 32};
}

constexpr int kElements = 8;  // of a head, that a lane of delta_kernel takes at a time

/// Elements [d, d + kElements) of a head; 0 past its end.
template <bool kPacked, class T>
__device__ void load_elements(const T* head, int d, int dim, float (&values)[kElements]) {
  if constexpr (kPacked) {
    runtime::detail::load(head + d, values);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      values[i] = d + i < dim ? runtime::detail::load_float(head[d + i]) : 0.0f;
  }
}

/// A block a row, `lanes` neighbours a head: a power of two. How the elements are loaded does not
/// change the order of the sum.
template <bool kPacked, class Out, class Dout>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(Operand<const Out> out, Operand<const Dout> dout, Operand<float> delta, int heads,
                 int dim, int lanes) {
  const std::int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes;
  const int together = static_cast<int>(blockDim.x) / lanes;
  for (int first = 0; first < heads; first += together) {
    const int head = first + thread / lanes;
    float sum = 0.0f;
    for (int d = lane * kElements; head < heads && d < dim; d += lanes * kElements) {
      float a[kElements], b[kElements];
      load_elements<kPacked>(out.head(head) + row * out.row_stride, d, dim, a);
      load_elements<kPacked>(dout.head(head) + row * dout.row_stride, d, dim, b);
#pragma unroll
      for (int i = 0; i < kElements; ++i) sum = fmaf(a[i], b[i], sum);
    }
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (head < heads && lane == 0) delta.head(head)[row * delta.row_stride] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    merge_kernel(Operand<const float> src_out, Operand<const float> src_lse, Operand<float> dst_out,
                 Operand<float> dst_lse, std::int64_t rows, int dim) {
  const WarpItem item = warp_item();
  if (item.row >= rows) return;
  const Lse new_lse = Lse::load(src_lse.head(item.head) + item.row * src_lse.row_stride);
  if (new_lse.high == -INFINITY) return;  // nothing to add, exactly
  float* lse_at = dst_lse.head(item.head) + item.row * dst_lse.row_stride;
  const MergeWeights weights = merge_weights(Lse::load(lse_at), new_lse);
  __syncwarp();  // every lane has read the old LSE
  if (item.lane == 0) weights.lse.store(lse_at);
  const float* from = src_out.head(item.head) + item.row * src_out.row_stride;
  float* to = dst_out.head(item.head) + item.row * dst_out.row_stride;
  for (int d = item.lane; d < dim; d += 32)
    to[d] = weights.a == 0.0 ? weights.of(0.0f, from[d]) : weights.of(to[d], from[d]);
}

// A sink is a partial of LSE sinks[h] whose out is 0.
__global__ void __launch_bounds__(kThreads)
    apply_sinks_kernel(Operand<float> out, Operand<float> lse, const float* sinks,
                       std::int64_t sink_stride, std::int64_t rows, int dim) {
  const WarpItem item = warp_item();
  if (item.row >= rows) return;
  const float sink = sinks[item.head * sink_stride];
  if (sink == -INFINITY) return;  // weighs nothing, exactly
  float* lse_at = lse.head(item.head) + item.row * lse.row_stride;
  const MergeWeights weights = merge_weights(Lse::load(lse_at), {sink, 0.0f});
  __syncwarp();  // every lane has read the old LSE
  if (item.lane == 0) weights.lse.store(lse_at);
  float* to = out.head(item.head) + item.row * out.row_stride;
  for (int d = item.lane; d < dim; d += 32)
    to[d] = weights.a == 0.0 ? 0.0f : weights.of(to[d], 0.0f);
}

/// One thread block a head; each thread sums every kThreads-th row, then the warps' sums are added
/// in order.
__global__ void __launch_bounds__(kThreads)
    sinks_backward_kernel(Operand<const float> lse, Operand<const float> delta, const float* sinks,
                          std::int64_t sink_stride, float* dsinks, std::int64_t dsink_stride,
                          std::int64_t rows) {
  __shared__ float sums[kWarps];
  const int head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const float sink = sinks[head * sink_stride];
  // Compensated (Kahan): a rank may hold a million rows.
  float sum = 0.0f, lost = 0.0f;
  for (std::int64_t row = thread; row < rows; row += kThreads) {
    // A sink of -inf weighs nothing, also in a row that sees nothing else.
    const Lse row_lse = Lse::load(lse.head(head) + row * lse.row_stride);
    const float weight = sink == -INFINITY ? 0.0f : expf((sink - row_lse.high) - row_lse.low);
    const float term = weight * delta.head(head)[row * delta.row_stride] - lost;
    const float next = sum + term;
    lost = (next - sum) - term;
    sum = next;
  }
  sum = warp_sum(sum);
  if (thread % 32 == 0) sums[thread / 32] = sum;
  __syncthreads();
  if (thread > 0) return;
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  dsinks[head * dsink_stride] = -total;
}

dim3 warp_grid(std::int64_t rows, std::int64_t heads) {
  return dim3(tiles(rows, kWarps), static_cast<unsigned>(heads));
}

/// Whether every kElements elements of each row and head can be loaded at once.
bool packed(const runtime::ConstTensorView& view) {
  static_assert(kElements == runtime::detail::kPack);
  return runtime::detail::aligned_rows(view.size(2), view.data()) &&
         view.stride(0) % kElements == 0 && view.stride(1) % kElements == 0;
}

}  // namespace

CudaPlan::CudaPlan(Pass pass, const std::vector<Slice>& bands, const BlockShape& shape,
                   const Scoring& scoring, const BlockPlace& place)
    : BlockPlan(pass, shape, scoring, place) {
  require_heads(shape.heads);
  // What the call would be refused for is refused here.
  with_columns(std::max(shape.dim, shape.value_dim), [&](auto columns) {
    require_shared_memory(runtime::concat("head dims ", shape.dim, " and ", shape.value_dim),
                          shared_bytes<decltype(columns)::value>(pass), place.device,
                          "use smaller heads, or an H100 or newer");
  });
  with_activation(shape.activation, [](auto) {});
  bands_.reserve(bands.size());
  for (const Slice& band : bands) bands_.push_back(to_band(band));
}

Problem CudaPlan::problem(const BlockMemory& memory) const {
  const BlockShape& s = shape();
  return {s.q_rows,
          s.k_rows,
          static_cast<int>(s.heads),
          static_cast<int>(s.kv_heads),
          static_cast<int>(s.dim),
          static_cast<int>(s.value_dim),
          scoring().scale,
          scoring().softcap,
          scoring().bias,
          scoring().weighting == Weighting::sigmoid,
          reinterpret_cast<const Band*>(memory.table),
          static_cast<int>(bands_.size())};
}

void cuda_block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                      runtime::TensorView delta, const runtime::Stream& stream) {
  if (delta.elements() == 0) return;
  with_activation(out.dtype(), [&](auto out_type) {
    using Out = decltype(out_type);
    with_activation(dout.dtype(), [&](auto dout_type) {
      using Dout = decltype(dout_type);
      const int heads = static_cast<int>(out.size(1)), dim = static_cast<int>(out.size(2));
      const auto needed = static_cast<unsigned>((dim + kElements - 1) / kElements);
      const int lanes = static_cast<int>(std::bit_ceil(std::clamp(needed, 1u, 32u)));
      launch(packed(out) && packed(dout) ? delta_kernel<true, Out, Dout>
                                         : delta_kernel<false, Out, Dout>,
             dim3(tiles(out.size(0), 1)), runtime::detail::threads_for(std::int64_t{heads} * lanes),
             0, stream, operand<Out>(out), operand<Dout>(dout), output_operand(delta), heads, dim,
             lanes);
    });
  });
}

void cuda_merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
                runtime::TensorView dst_out, runtime::TensorView dst_lse,
                const runtime::Stream& stream) {
  if (dst_lse.elements() == 0) return;
  launch(merge_kernel, warp_grid(src_out.size(0), src_out.size(1)), kThreads, 0, stream,
         operand<float>(src_out), operand<float>(src_lse), output_operand(dst_out),
         output_operand(dst_lse), src_out.size(0), static_cast<int>(src_out.size(2)));
}

void cuda_apply_sinks(runtime::TensorView out, runtime::TensorView lse,
                      runtime::ConstTensorView sinks, const runtime::Stream& stream) {
  if (lse.elements() == 0) return;
  launch(apply_sinks_kernel, warp_grid(out.size(0), out.size(1)), kThreads, 0, stream,
         output_operand(out), output_operand(lse), sinks.as<float>(), sinks.stride(0), out.size(0),
         static_cast<int>(out.size(2)));
}

void cuda_sinks_backward(runtime::ConstTensorView lse, runtime::ConstTensorView delta,
                         runtime::ConstTensorView sinks, runtime::TensorView dsinks,
                         const runtime::Stream& stream) {
  if (lse.size(1) == 0) return;
  launch(sinks_backward_kernel, dim3(1, static_cast<unsigned>(lse.size(1))), kThreads, 0, stream,
         operand<float>(lse), operand<float>(delta), sinks.as<float>(), sinks.stride(0),
         dsinks.as<float>(), dsinks.stride(0), lse.size(0));
}

}  // namespace longhaul::attention::detail

// The kernels of sdpa_glue_impl.h. All are bound by memory: a few lanes of a warp own one row of
// one head, eight elements each, moved 16 bytes at a time.

#include "attention/block_tile.cuh"
#include "attention/sdpa_glue_impl.h"

namespace longhaul::attention::detail {
namespace {

using runtime::BFloat16;

constexpr int kElements = 8;  // of a lane

/// Eight bfloat16 at an address of 16 bytes.
__device__ void load_eight(const BFloat16* at, float (&value)[kElements]) {
  const float4 raw = *reinterpret_cast<const float4*>(at);
  const float pair[kElements / 2] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    const std::uint32_t bits = __float_as_uint(pair[i]);
    value[2 * i] = __uint_as_float(bits << 16);
    value[2 * i + 1] = __uint_as_float(bits & 0xffff0000u);
  }
}
__device__ void store_eight(const float (&value)[kElements], BFloat16* at) {
  float pair[kElements / 2];
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    BFloat16 low{}, high{};
    runtime::detail::store_float(value[2 * i], low);
    runtime::detail::store_float(value[2 * i + 1], high);
    pair[i] = __uint_as_float(static_cast<std::uint32_t>(low.bits) |
                              static_cast<std::uint32_t>(high.bits) << 16);
  }
  *reinterpret_cast<float4*>(at) = {pair[0], pair[1], pair[2], pair[3]};
}

/// Eight floats; `aligned`: their address is one of 16 bytes.
__device__ void load_eight(const float* at, bool aligned, float (&value)[kElements]) {
  if (aligned) {
    const float4 a = reinterpret_cast<const float4*>(at)[0],
                 b = reinterpret_cast<const float4*>(at)[1];
    value[0] = a.x, value[1] = a.y, value[2] = a.z, value[3] = a.w;
    value[4] = b.x, value[5] = b.y, value[6] = b.z, value[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) value[i] = at[i];
  }
}
__device__ void store_eight(const float (&value)[kElements], bool aligned, float* at) {
  if (aligned) {
    reinterpret_cast<float4*>(at)[0] = {value[0], value[1], value[2], value[3]};
    reinterpret_cast<float4*>(at)[1] = {value[4], value[5], value[6], value[7]};
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) at[i] = value[i];
  }
}

/// The row and the head of a group of lanes, and this lane's first element.
struct Item {
  std::uint32_t index;  ///< among rows times heads
  int head;
  int element;
};
template <int kLanes>
__device__ Item item_of(int heads) {
  const std::uint32_t index = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
  return {index, static_cast<int>(index % static_cast<std::uint32_t>(heads)),
          static_cast<int>(threadIdx.x) % kLanes * kElements};
}

struct RowOf {
  std::int64_t row;
  Take take;
};
/// The number-th row of the ranges.
__device__ RowOf row_of(const RowRanges& ranges, std::int32_t number) {
  int low = 0, high = ranges.count - 1;  // the last range with before <= number
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (ranges.ranges[middle].before <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const RowRange& range = ranges.ranges[low];
  return {range.begin + (number - range.before), range.take};
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    take_partial_kernel(const BFloat16* from, const float* from_lse, std::int64_t first,
                        RowRanges ranges, bool add, Operand<float> out, Operand<float> lse,
                        int heads, int dim, bool aligned) {
  const Item item = item_of<kLanes>(heads);
  const auto number = static_cast<std::int32_t>(item.index / static_cast<std::uint32_t>(heads));
  if (number >= ranges.rows) return;  // all lanes of the row alike
  const RowOf of = row_of(ranges, number);
  const bool mine = item.element < dim;
  const std::int64_t source = (of.row - first) * heads + item.head;
  float* lse_at = lse.head(item.head) + of.row * lse.row_stride;
  float* out_at = out.head(item.head) + of.row * out.row_stride + item.element;
  const Lse own = of.take == Take::none ? Lse{-INFINITY, 0.0f} : Lse{from_lse[source], 0.0f};
  const bool merges = of.take == Take::again || (of.take == Take::first && add);
  const MergeWeights weights =
      merges ? merge_weights(Lse::load(lse_at), own) : MergeWeights{0.0, 1.0, own};
  __syncwarp();  // every lane has read the old LSE
  if (item.element == 0) weights.lse.store(lse_at);
  if (!mine || weights.b == 0.0) return;
  float value[kElements] = {};
  // A row without a key is 0, whatever is beside its LSE of -inf.
  if (own.high != -INFINITY) load_eight(from + source * dim + item.element, value);
  if (weights.a != 0.0) {
    float old[kElements];
    load_eight(out_at, aligned, old);
#pragma unroll
    for (int i = 0; i < kElements; ++i) value[i] = weights.of(old[i], value[i]);
  }
  store_eight(value, aligned, out_at);
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    take_gradient_kernel(const BFloat16* from, RowRanges ranges, bool add, Operand<float> to,
                         int heads, int dim, bool aligned) {
  const Item item = item_of<kLanes>(heads);
  const auto number = static_cast<std::int32_t>(item.index / static_cast<std::uint32_t>(heads));
  if (number >= ranges.rows || item.element >= dim) return;
  const RowOf of = row_of(ranges, number);
  float* at = to.head(item.head) + of.row * to.row_stride + item.element;
  float value[kElements] = {};
  if (of.take != Take::none)
    load_eight(from + (of.row * heads + item.head) * dim + item.element, value);
  if (of.take == Take::again || (of.take == Take::first && add)) {
    float old[kElements];
    load_eight(at, aligned, old);
#pragma unroll
    for (int i = 0; i < kElements; ++i) value[i] += old[i];
  }
  store_eight(value, aligned, at);
}

/// Over the lanes of a row; all get it.
template <int kLanes, class Combine>
__device__ float reduced(float value, const Combine& combine) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    stand_in_kernel(Operand<const BFloat16> dout, Operand<const float> delta, BFloat16* to,
                    std::int64_t rows, int heads, int dim) {
  const Item item = item_of<kLanes>(heads);
  const std::int64_t row = item.index / static_cast<std::uint32_t>(heads);
  const bool mine = row < rows && item.element < dim;
  float value[kElements] = {};
  if (mine) load_eight(dout.head(item.head) + row * dout.row_stride + item.element, value);
  // Scaled by the largest one, so that no square is lost.
  float largest = 0.0f, sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kElements; ++i) largest = fmaxf(largest, fabsf(value[i]));
  largest = reduced<kLanes>(largest, [](float a, float b) { return fmaxf(a, b); });
  if (largest > 0.0f) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      value[i] /= largest;
      sum = fmaf(value[i], value[i], sum);
    }
  }
  sum = reduced<kLanes>(sum, [](float a, float b) { return a + b; });
  if (!mine) return;
  const float factor =
      largest > 0.0f ? delta.head(item.head)[row * delta.row_stride] / largest / sum : 0.0f;
#pragma unroll
  for (int i = 0; i < kElements; ++i) value[i] *= factor;
  store_eight(value, to + (row * heads + item.head) * dim + item.element);
}

__global__ void __launch_bounds__(kThreads)
    copy_lse_kernel(Operand<const float> lse, LseRows which, float* to, int heads,
                    std::int64_t count) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  const std::int64_t head = index % heads, row = index / heads % which.rows,
                     entry = index / heads / which.rows;
  const float value = lse.head(head)[(which.first + entry * which.step + row) * lse.row_stride];
  to[which.row_major ? index : (entry * heads + head) * which.rows + row] = value;
}

/// Calls body(std::integral_constant<int, lanes that hold a row>).
template <class Body>
void with_lanes(std::int64_t dim, const Body& body) {
  if (dim <= 64) return body(std::integral_constant<int, 8>());
  if (dim <= 128) return body(std::integral_constant<int, 16>());
  body(std::integral_constant<int, 32>());
}

/// Thread blocks for so many rows of heads.
template <int kLanes>
dim3 grid_of(std::int64_t rows, std::int64_t heads) {
  return dim3(tiles(rows * heads, kThreads / kLanes));
}

bool aligned(const runtime::TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % 4 == 0 &&
         view.stride(1) % 4 == 0;
}

}  // namespace

void take_partial(const std::byte* from, const float* from_lse, std::int64_t first,
                  const RowRanges& ranges, Mode mode, runtime::TensorView out,
                  runtime::TensorView lse, const runtime::Stream& stream) {
  if (ranges.rows == 0) return;
  const std::int64_t heads = out.size(1), dim = out.size(2);
  with_lanes(dim, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(take_partial_kernel<kLanes>, grid_of<kLanes>(ranges.rows, heads), kThreads, 0, stream,
           reinterpret_cast<const BFloat16*>(from), from_lse, first, ranges, mode == Mode::add,
           output_operand(out), output_operand(lse), static_cast<int>(heads), static_cast<int>(dim),
           aligned(out));
  });
}

void take_gradient(const std::byte* from, const RowRanges& ranges, Mode mode,
                   runtime::TensorView gradient, const runtime::Stream& stream) {
  if (ranges.rows == 0) return;
  const std::int64_t heads = gradient.size(1), dim = gradient.size(2);
  with_lanes(dim, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(take_gradient_kernel<kLanes>, grid_of<kLanes>(ranges.rows, heads), kThreads, 0, stream,
           reinterpret_cast<const BFloat16*>(from), ranges, mode == Mode::add,
           output_operand(gradient), static_cast<int>(heads), static_cast<int>(dim),
           aligned(gradient));
  });
}

void stand_in_for_out(runtime::ConstTensorView dout, runtime::ConstTensorView delta, std::byte* to,
                      const runtime::Stream& stream) {
  const std::int64_t rows = dout.size(0), heads = dout.size(1), dim = dout.size(2);
  with_lanes(dim, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(stand_in_kernel<kLanes>, grid_of<kLanes>(rows, heads), kThreads, 0, stream,
           operand<BFloat16>(dout), operand<float>(delta), reinterpret_cast<BFloat16*>(to), rows,
           static_cast<int>(heads), static_cast<int>(dim));
  });
}

void copy_lse(runtime::ConstTensorView lse, const LseRows& which, float* to,
              const runtime::Stream& stream) {
  const std::int64_t heads = lse.size(1), count = which.batch * which.rows * heads;
  launch(copy_lse_kernel, dim3(tiles(count, kThreads)), kThreads, 0, stream, operand<float>(lse),
         which, to, static_cast<int>(heads), count);
}

}  // namespace longhaul::attention::detail

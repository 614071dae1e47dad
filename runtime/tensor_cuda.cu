// copy(), accumulate() and fill() on CUDA streams: plain memory copies where the bytes lie
// together, else one kernel that walks both views.

#include <algorithm>
#include <bit>

#include "runtime/cuda_check_impl.h"
#include "runtime/float_device.cuh"
#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks =
    132 * 16;  // enough to fill the largest device; the rest is the loop's

/// Sizes and strides of two views in lockstep, outermost first, dims that lie together made one.
struct Walk {
  int dims = 0;
  std::int64_t elements = 1;
  std::int64_t sizes[kMaxDims] = {};
  std::int64_t src[kMaxDims] = {};
  std::int64_t dst[kMaxDims] = {};
};

Walk make_walk(const ConstTensorView& src, const ConstTensorView& dst) {
  Walk walk;
  for (int dim = 0; dim < dst.dims(); ++dim) {
    const std::int64_t size = dst.size(dim);
    walk.elements *= size;
    if (size == 1) continue;
    const int last = walk.dims - 1;
    if (last >= 0 && walk.src[last] == src.stride(dim) * size &&
        walk.dst[last] == dst.stride(dim) * size) {
      walk.sizes[last] *= size;
      walk.src[last] = src.stride(dim);
      walk.dst[last] = dst.stride(dim);
      continue;
    }
    walk.sizes[walk.dims] = size;
    walk.src[walk.dims] = src.stride(dim);
    walk.dst[walk.dims] = dst.stride(dim);
    ++walk.dims;
  }
  return walk;
}

int blocks_for(std::int64_t elements) {
  return static_cast<int>(std::min(kMaxBlocks, (elements + kThreads - 1) / kThreads));
}

/// Calls body(source offset, destination offset) for this thread's elements. The innermost dim is
/// across threads, so a warp's accesses lie together where a view's do.
template <class Body>
__device__ void for_each_element(const Walk& walk, const Body& body) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < walk.elements; i += step) {
    std::int64_t rest = i, src = 0, dst = 0;
    for (int dim = walk.dims - 1; dim > 0; --dim) {
      const std::int64_t at = rest % walk.sizes[dim];
      rest /= walk.sizes[dim];
      src += at * walk.src[dim];
      dst += at * walk.dst[dim];
    }
    if (walk.dims > 0) {
      src += rest * walk.src[0];
      dst += rest * walk.dst[0];
    }
    body(src, dst);
  }
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    move_kernel(const Bits* src, Bits* dst, const Walk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) { dst[to] = src[from]; });
}

/// By way of float, as copy() on the host does.
template <class From, class To>
__global__ void __launch_bounds__(kThreads) cast_kernel(const From* src, To* dst, const Walk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) {
    store_float(load_float(src[from]), dst[to]);
  });
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) fill_kernel(Bits* dst, Bits value, const Walk walk) {
  for_each_element(walk, [&](std::int64_t, std::int64_t to) { dst[to] = value; });
}

__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const float* src, float* dst, const Walk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) { dst[to] += src[from]; });
}

template <class Bits>
void move(const ConstTensorView& src, const TensorView& dst, const Walk& walk,
          cudaStream_t stream) {
  move_kernel<<<blocks_for(walk.elements), kThreads, 0, stream>>>(
      reinterpret_cast<const Bits*>(src.data()), reinterpret_cast<Bits*>(dst.data()), walk);
  LONGHAUL_CUDA_CHECK(cudaGetLastError());
}

template <class From, class To>
void cast(const ConstTensorView& src, const TensorView& dst, const Walk& walk,
          cudaStream_t stream) {
  cast_kernel<<<blocks_for(walk.elements), kThreads, 0, stream>>>(src.as<From>(), dst.as<To>(),
                                                                  walk);
  LONGHAUL_CUDA_CHECK(cudaGetLastError());
}

template <class From>
void cast_from(const ConstTensorView& src, const TensorView& dst, const Walk& walk,
               cudaStream_t stream) {
  switch (dst.dtype()) {
    case DType::float32:
      return cast<From, float>(src, dst, walk, stream);
    case DType::bfloat16:
      return cast<From, BFloat16>(src, dst, walk, stream);
    case DType::float64:
      return cast<From, double>(src, dst, walk, stream);
    default:
      fail(ExitCode::internal, "no cast from ", name(src.dtype()), " to ", name(dst.dtype()));
  }
}

void copy_on_device(const ConstTensorView& src, const TensorView& dst, cudaStream_t stream) {
  const Walk walk = make_walk(src, dst);
  if (src.dtype() == dst.dtype()) {
    switch (size_bytes(src.dtype())) {
      case 1:
        return move<std::uint8_t>(src, dst, walk, stream);
      case 2:
        return move<std::uint16_t>(src, dst, walk, stream);
      case 4:
        return move<std::uint32_t>(src, dst, walk, stream);
      default:
        return move<std::uint64_t>(src, dst, walk, stream);
    }
  }
  switch (src.dtype()) {
    case DType::float32:
      return cast_from<float>(src, dst, walk, stream);
    case DType::bfloat16:
      return cast_from<BFloat16>(src, dst, walk, stream);
    case DType::float64:
      return cast_from<double>(src, dst, walk, stream);
    default:
      fail(ExitCode::internal, "no cast from ", name(src.dtype()), " to ", name(dst.dtype()));
  }
}

/// Rows of a list in lockstep: where rows lie in the two views, and the walk within a row.
struct RowWalk {
  const RowMoves::Entry* entries;
  std::int64_t count, rows, src_stride, dst_stride;
  Walk row;
};

RowWalk make_row_walk(const ConstTensorView& src, const TensorView& dst, const RowList& list) {
  const auto any_row = [](const ConstTensorView& view) {
    ConstTensorView one;  // of no rows, perhaps: only sizes and strides are used
    Sizes sizes{}, strides{};
    for (int dim = 0; dim < view.dims(); ++dim) {
      sizes[static_cast<std::size_t>(dim)] = dim == 0 ? 1 : view.size(dim);
      strides[static_cast<std::size_t>(dim)] = view.stride(dim);
    }
    one.assign(view.data(), view.dtype(), view.device(), view.dims(), sizes, strides);
    return one;
  };
  return {reinterpret_cast<const RowMoves::Entry*>(list.table),
          std::ssize(list.moves->entries()),
          list.moves->rows(),
          src.stride(0),
          dst.stride(0),
          make_walk(any_row(src), any_row(dst))};
}

/// One block a row at a time, found in the list by its number.
template <class Body>
__device__ void for_each_listed_element(const RowWalk& walk, const Body& body) {
  for (std::int64_t row = blockIdx.x; row < walk.rows; row += gridDim.x) {
    std::int64_t low = 0, high = walk.count;  // the last entry that begins at or before the row
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (walk.entries[middle].first <= row ? low : high) = middle;
    }
    const RowMoves::Entry entry = walk.entries[low];
    const std::int64_t src_row = (entry.from + row - entry.first) * walk.src_stride,
                       dst_row = (entry.to + row - entry.first) * walk.dst_stride;
    for (std::int64_t i = threadIdx.x; i < walk.row.elements; i += kThreads) {
      std::int64_t rest = i, src = src_row, dst = dst_row;
      for (int dim = walk.row.dims - 1; dim > 0; --dim) {
        const std::int64_t at = rest % walk.row.sizes[dim];
        rest /= walk.row.sizes[dim];
        src += at * walk.row.src[dim];
        dst += at * walk.row.dst[dim];
      }
      if (walk.row.dims > 0) {
        src += rest * walk.row.src[0];
        dst += rest * walk.row.dst[0];
      }
      body(src, dst);
    }
  }
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(const Bits* src, Bits* dst, const RowWalk walk) {
  for_each_listed_element(walk, [&](std::int64_t from, std::int64_t to) { dst[to] = src[from]; });
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    cast_rows_kernel(const From* src, To* dst, const RowWalk walk) {
  for_each_listed_element(walk, [&](std::int64_t from, std::int64_t to) {
    store_float(load_float(src[from]), dst[to]);
  });
}

__global__ void __launch_bounds__(kThreads)
    accumulate_rows_kernel(const float* src, float* dst, const RowWalk walk) {
  for_each_listed_element(walk, [&](std::int64_t from, std::int64_t to) { dst[to] += src[from]; });
}

template <class Kernel, class From, class To>
void launch_rows(Kernel kernel, const From* src, To* dst, const RowWalk& walk,
                 const Stream& stream) {
  const int blocks = static_cast<int>(std::min(kMaxBlocks, walk.rows));
  kernel<<<blocks, kThreads, 0, cuda_stream(stream)>>>(src, dst, walk);
  LONGHAUL_CUDA_CHECK(cudaGetLastError());
}

template <class Bits>
void move_rows(const ConstTensorView& src, const TensorView& dst, const RowWalk& walk,
               const Stream& stream) {
  launch_rows(move_rows_kernel<Bits>, reinterpret_cast<const Bits*>(src.data()),
              reinterpret_cast<Bits*>(dst.data()), walk, stream);
}

template <class Bits>
void fill_bits(const TensorView& dst, Bits value, cudaStream_t stream) {
  const Walk walk = make_walk(dst, dst);
  fill_kernel<<<blocks_for(walk.elements), kThreads, 0, stream>>>(
      reinterpret_cast<Bits*>(dst.data()), value, walk);
  LONGHAUL_CUDA_CHECK(cudaGetLastError());
}

/// Memory that CUDA does not know makes a copy block inside the driver until the stream has come so
/// far, and the host task that the stream waits for cannot reach the driver meanwhile.
void check_pinned(const void* host, const Stream& stream) {
  cudaPointerAttributes attributes{};
  LONGHAUL_CUDA_CHECK(cudaPointerGetAttributes(&attributes, host));
  LONGHAUL_CHECK(attributes.type == cudaMemoryTypeHost, "copy on stream '", stream.name(),
                 "' between ", to_string(stream.device()),
                 " and pageable host memory; use memory of Stream::allocate_host(), or "
                 "ops::upload() and ops::download()");
}

}  // namespace

void cuda_copy(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  const bool from_host = src.device().kind == DeviceKind::cpu;
  const bool to_host = dst.device().kind == DeviceKind::cpu;
  if (from_host && to_host) {
    stream.host_task([src, dst] { copy_now(src, dst); });
    return;
  }
  const cudaStream_t handle = cuda_stream(stream);
  const bool one_device = src.device() == dst.device();
  LONGHAUL_CHECK(src.device() == stream.device() || dst.device() == stream.device(),
                 "copy on stream '", stream.name(), "' of ", to_string(stream.device()), " from ",
                 to_string(src.device()), " to ", to_string(dst.device()));
  if (src.dtype() == dst.dtype() && src.contiguous() && dst.contiguous()) {
    if (from_host || to_host) check_pinned(from_host ? src.data() : dst.data(), stream);
    // The kind follows from the addresses.
    LONGHAUL_CUDA_CHECK(cudaMemcpyAsync(
        dst.data(), src.data(), static_cast<std::size_t>(dst.bytes()), cudaMemcpyDefault, handle));
    return;
  }
  LONGHAUL_CHECK(one_device, "copy between ", to_string(src.device()), " and ",
                 to_string(dst.device()),
                 " needs equal dtypes and contiguous views; pack on one side first");
  copy_on_device(src, dst, handle);
}

void cuda_accumulate(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  LONGHAUL_CHECK(src.device() == stream.device() && dst.device() == stream.device(),
                 "accumulate on stream '", stream.name(), "' of memory on another device");
  const Walk walk = make_walk(src, dst);
  accumulate_kernel<<<blocks_for(walk.elements), kThreads, 0, cuda_stream(stream)>>>(
      src.as<float>(), dst.as<float>(), walk);
  LONGHAUL_CUDA_CHECK(cudaGetLastError());
}

void cuda_copy_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                    const Stream& stream) {
  const RowWalk walk = make_row_walk(src, dst, rows);
  if (walk.rows == 0 || walk.row.elements == 0) return;
  LONGHAUL_CHECK(rows.table != nullptr, "a list of rows without its device table");
  if (src.dtype() == dst.dtype()) {
    switch (size_bytes(src.dtype())) {
      case 2:
        return move_rows<std::uint16_t>(src, dst, walk, stream);
      case 4:
        return move_rows<std::uint32_t>(src, dst, walk, stream);
      default:
        break;
    }
  } else if (src.dtype() == DType::float32 && dst.dtype() == DType::bfloat16) {
    return launch_rows(cast_rows_kernel<float, BFloat16>, src.as<float>(), dst.as<BFloat16>(), walk,
                       stream);
  } else if (src.dtype() == DType::bfloat16 && dst.dtype() == DType::float32) {
    return launch_rows(cast_rows_kernel<BFloat16, float>, src.as<BFloat16>(), dst.as<float>(), walk,
                       stream);
  }
  fail(ExitCode::internal, "no copy of rows from ", name(src.dtype()), " to ", name(dst.dtype()));
}

void cuda_accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                          const Stream& stream) {
  const RowWalk walk = make_row_walk(src, dst, rows);
  if (walk.rows == 0 || walk.row.elements == 0) return;
  LONGHAUL_CHECK(rows.table != nullptr, "a list of rows without its device table");
  launch_rows(accumulate_rows_kernel, src.as<float>(), dst.as<float>(), walk, stream);
}

void cuda_fill(TensorView dst, double value, const Stream& stream) {
  if (dst.elements() == 0) return;
  LONGHAUL_CHECK(dst.device() == stream.device(), "fill on stream '", stream.name(), "' of ",
                 to_string(stream.device()), " of memory on ", to_string(dst.device()));
  const cudaStream_t handle = cuda_stream(stream);
  switch (dst.dtype()) {
    case DType::float32:
      return fill_bits(dst, std::bit_cast<std::uint32_t>(static_cast<float>(value)), handle);
    case DType::bfloat16:
      return fill_bits(dst, BFloat16(static_cast<float>(value)).bits, handle);
    case DType::float64:
      return fill_bits(dst, std::bit_cast<std::uint64_t>(value), handle);
    case DType::int32:
      return fill_bits(dst, static_cast<std::uint32_t>(static_cast<std::int32_t>(value)), handle);
    case DType::int64:
      return fill_bits(dst, static_cast<std::uint64_t>(static_cast<std::int64_t>(value)), handle);
    case DType::uint8:
      return fill_bits(dst, static_cast<std::uint8_t>(value), handle);
  }
}

}  // namespace longhaul::runtime::detail

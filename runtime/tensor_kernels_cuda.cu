// Copies, sums and fills of views of any strides on CUDA streams: kernels that walk two views in
// lockstep, by 16 bytes where the views allow it.

#include <bit>
#include <cstring>
#include <limits>

#include "runtime/kernel.cuh"
#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
namespace {

/// Sizes and strides of two views in lockstep, outermost first, dims that lie together made one.
/// In elements, or in packs of them.
struct Walk {
  int dims = 0;
  std::int64_t elements = 1;
  std::int64_t sizes[kMaxDims] = {};
  std::int64_t src[kMaxDims] = {};
  std::int64_t dst[kMaxDims] = {};
};

Walk make_walk(const ConstTensorView& src, const ConstTensorView& dst, int first_dim = 0) {
  Walk walk;
  for (int dim = first_dim; dim < dst.dims(); ++dim) {
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

/// Whether the walk can go by packs of `pack` elements: the innermost dim is made of whole packs
/// that lie together in both views, and every step is one of whole packs.
bool packable(const Walk& walk, int pack) {
  const int last = walk.dims - 1;
  if (last < 0 || walk.src[last] != 1 || walk.dst[last] != 1 || walk.sizes[last] % pack != 0)
    return false;
  for (int dim = 0; dim < last; ++dim) {
    if (walk.src[dim] % pack != 0 || walk.dst[dim] % pack != 0) return false;
  }
  return true;
}
Walk packed(Walk walk, int pack) {
  const int last = walk.dims - 1;
  walk.elements /= pack;
  walk.sizes[last] /= pack;
  for (int dim = 0; dim < last; ++dim) {
    walk.src[dim] /= pack;
    walk.dst[dim] /= pack;
  }
  return walk;
}

/// Calls body(source offset, destination offset) for the i-th element. The innermost dim is across
/// threads, so a warp's accesses lie together where a view's do.
template <class Index, class Body>
__device__ void at_element(const Walk& walk, Index i, std::int64_t src, std::int64_t dst,
                           const Body& body) {
  for (int dim = walk.dims - 1; dim > 0; --dim) {
    const auto size = static_cast<Index>(walk.sizes[dim]);
    const Index at = i % size;
    i /= size;
    src += at * walk.src[dim];
    dst += at * walk.dst[dim];
  }
  if (walk.dims > 0) {
    src += i * walk.src[0];
    dst += i * walk.dst[0];
  }
  body(src, dst);
}
template <class Index, class Body>
__device__ void for_each_index(const Walk& walk, const Body& body) {
  const Index step = gridDim.x * blockDim.x, elements = static_cast<Index>(walk.elements);
  for (Index i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += step)
    at_element(walk, i, 0, 0, body);
}
/// This thread's elements. Divisions of 64 bits are slow, so they are for what needs them.
template <class Body>
__device__ void for_each_element(const Walk& walk, const Body& body) {
  if (walk.elements <= std::numeric_limits<std::int32_t>::max())
    return for_each_index<std::uint32_t>(walk, body);
  for_each_index<std::int64_t>(walk, body);
}

/// Rows of a list in lockstep: where rows lie in the two views, and the walk within a row.
struct RowWalk {
  const RowMoves::Entry* entries;
  std::int64_t count, rows, src_stride, dst_stride;
  Walk row;
};

RowWalk make_row_walk(const ConstTensorView& src, const TensorView& dst, const RowList& list) {
  const RowWalk walk{reinterpret_cast<const RowMoves::Entry*>(list.table),
                     std::ssize(list.moves->entries()),
                     list.moves->rows(),
                     src.stride(0),
                     dst.stride(0),
                     make_walk(src, dst, 1)};
  LONGHAUL_CHECK(walk.row.elements <= std::numeric_limits<std::int32_t>::max(), "a row of ",
                 walk.row.elements, " elements; expected fewer than 2^31");
  return walk;
}
bool packable(const RowWalk& walk, int pack) {
  return packable(walk.row, pack) && walk.src_stride % pack == 0 && walk.dst_stride % pack == 0;
}
RowWalk packed(RowWalk walk, int pack) {
  walk.row = packed(walk.row, pack);
  walk.src_stride /= pack;
  walk.dst_stride /= pack;
  return walk;
}

/// One block a row at a time, found in the list by its number.
template <class Body>
__device__ void for_each_element(const RowWalk& walk, const Body& body) {
  const auto elements = static_cast<std::uint32_t>(walk.row.elements);
  for (std::int64_t row = blockIdx.x; row < walk.rows; row += gridDim.x) {
    std::int64_t low = 0, high = walk.count;  // the last entry that begins at or before the row
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (walk.entries[middle].first <= row ? low : high) = middle;
    }
    const RowMoves::Entry entry = walk.entries[low];
    const std::int64_t src = (entry.from + row - entry.first) * walk.src_stride,
                       dst = (entry.to + row - entry.first) * walk.dst_stride;
    for (std::uint32_t i = threadIdx.x; i < elements; i += blockDim.x)
      at_element(walk.row, i, src, dst, body);
  }
}

// The kernels take either walk.

template <class Bits, class AnyWalk>
__global__ void __launch_bounds__(kThreads)
    move_kernel(const Bits* src, Bits* dst, const AnyWalk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) { dst[to] = src[from]; });
}

/// By way of float, as copy() on the host does.
template <int N, class From, class To, class AnyWalk>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(const From* src, To* dst, const AnyWalk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) {
    float values[N];
    load(src + from * N, values);
    store(values, dst + to * N);
  });
}

template <int N, class AnyWalk>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const float* src, float* dst, const AnyWalk walk) {
  for_each_element(walk, [&](std::int64_t from, std::int64_t to) {
    float values[N], sums[N];
    load(src + from * N, values);
    load(dst + to * N, sums);
#pragma unroll
    for (int j = 0; j < N; ++j) sums[j] += values[j];
    store(sums, dst + to * N);
  });
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) fill_kernel(Bits* dst, Bits value, const Walk walk) {
  for_each_element(walk, [&](std::int64_t, std::int64_t to) { dst[to] = value; });
}

template <class Kernel, class... Arguments>
void launch_walk(Kernel kernel, const Walk& walk, const Stream& stream,
                 const Arguments&... arguments) {
  launch(kernel, blocks_for(walk.elements, kThreads), kThreads, stream, arguments..., walk);
}
template <class Kernel, class... Arguments>
void launch_walk(Kernel kernel, const RowWalk& walk, const Stream& stream,
                 const Arguments&... arguments) {
  launch(kernel, blocks_for(walk.rows, 1), threads_for(walk.row.elements), stream, arguments...,
         walk);
}

using SixteenBytes = Sixteen<std::uint32_t>;

/// Calls body(Bits()) for elements of so many bytes.
template <class Body>
void with_bits(std::int64_t bytes, const Body& body) {
  switch (bytes) {
    case 1:
      return body(std::uint8_t());
    case 2:
      return body(std::uint16_t());
    case 4:
      return body(std::uint32_t());
    case 8:
      return body(std::uint64_t());
    default:
      return body(SixteenBytes());
  }
}
/// Calls body(T()) for a float dtype.
template <class Body>
void with_float(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32:
      return body(float());
    case DType::bfloat16:
      return body(BFloat16());
    case DType::float64:
      return body(double());
    default:
      fail(ExitCode::internal, "no cast from or to ", name(dtype));
  }
}

/// src -> dst over either walk.
template <class AnyWalk>
void copy_walk(const ConstTensorView& src, const TensorView& dst, const AnyWalk& walk,
               const Stream& stream) {
  const bool on_sixteen = aligned(src.data(), dst.data());
  if (src.dtype() == dst.dtype()) {
    const std::int64_t bytes = size_bytes(src.dtype());
    const int pack = static_cast<int>(16 / bytes);
    const bool by_packs = on_sixteen && packable(walk, pack);
    return with_bits(by_packs ? 16 : bytes, [&](auto bits) {
      using Bits = decltype(bits);
      launch_walk(move_kernel<Bits, AnyWalk>, by_packs ? packed(walk, pack) : walk, stream,
                  reinterpret_cast<const Bits*>(src.data()), reinterpret_cast<Bits*>(dst.data()));
    });
  }
  const bool by_packs = on_sixteen && packable(walk, kPack);
  with_float(src.dtype(), [&](auto from) {
    with_float(dst.dtype(), [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      if constexpr (!std::is_same_v<From, To>) {
        with_count(by_packs, [&](auto count) {
          launch_walk(cast_kernel<count(), From, To, AnyWalk>,
                      by_packs ? packed(walk, kPack) : walk, stream, src.as<From>(), dst.as<To>());
        });
      }
    });
  });
}

template <class AnyWalk>
void accumulate_walk(const ConstTensorView& src, const TensorView& dst, const AnyWalk& walk,
                     const Stream& stream) {
  const bool by_packs = aligned(src.data(), dst.data()) && packable(walk, kPack);
  with_count(by_packs, [&](auto count) {
    launch_walk(accumulate_kernel<count(), AnyWalk>, by_packs ? packed(walk, kPack) : walk, stream,
                src.as<float>(), dst.as<float>());
  });
}

/// The bytes of one element of a dtype, eight at most.
std::uint64_t element_bits(DType dtype, double value) {
  switch (dtype) {
    case DType::float32:
      return std::bit_cast<std::uint32_t>(static_cast<float>(value));
    case DType::bfloat16:
      return BFloat16(static_cast<float>(value)).bits;
    case DType::float64:
      return std::bit_cast<std::uint64_t>(value);
    case DType::int32:
      return static_cast<std::uint32_t>(static_cast<std::int32_t>(value));
    case DType::int64:
      return static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
    case DType::uint8:
      return static_cast<std::uint8_t>(value);
  }
  return 0;
}

}  // namespace

void cuda_copy_elements(ConstTensorView src, TensorView dst, const Stream& stream) {
  copy_walk(src, dst, make_walk(src, dst), stream);
}

void cuda_accumulate(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  LONGHAUL_CHECK(src.device() == stream.device() && dst.device() == stream.device(),
                 "accumulate on stream '", stream.name(), "' of memory on another device");
  accumulate_walk(src, dst, make_walk(src, dst), stream);
}

void cuda_copy_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                    const Stream& stream) {
  const RowWalk walk = make_row_walk(src, dst, rows);
  if (walk.rows == 0 || walk.row.elements == 0) return;
  LONGHAUL_CHECK(rows.table != nullptr, "a list of rows without its device table");
  copy_walk(src, dst, walk, stream);
}

void cuda_accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                          const Stream& stream) {
  const RowWalk walk = make_row_walk(src, dst, rows);
  if (walk.rows == 0 || walk.row.elements == 0) return;
  LONGHAUL_CHECK(rows.table != nullptr, "a list of rows without its device table");
  accumulate_walk(src, dst, walk, stream);
}

void cuda_fill(TensorView dst, double value, const Stream& stream) {
  if (dst.elements() == 0) return;
  LONGHAUL_CHECK(dst.device() == stream.device(), "fill on stream '", stream.name(), "' of ",
                 to_string(stream.device()), " of memory on ", to_string(dst.device()));
  const std::int64_t bytes = size_bytes(dst.dtype());
  const std::uint64_t element = element_bits(dst.dtype(), value);
  const int pack = static_cast<int>(16 / bytes);
  const Walk walk = make_walk(dst, dst);
  const bool by_packs = aligned(dst.data()) && packable(walk, pack);
  with_bits(by_packs ? 16 : bytes, [&](auto bits) {
    for (std::size_t at = 0; at < sizeof(bits); at += static_cast<std::size_t>(bytes))
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + at, &element,
                  static_cast<std::size_t>(bytes));
    using Bits = decltype(bits);
    launch_walk(fill_kernel<Bits>, by_packs ? packed(walk, pack) : walk, stream,
                reinterpret_cast<Bits*>(dst.data()), bits);
  });
}

}  // namespace longhaul::runtime::detail

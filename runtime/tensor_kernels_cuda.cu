// copy() within a CUDA device, accumulate() and fill(), and the same for lists of rows: kernels
// that walk both views, 16 bytes at a time where the views allow it. They divide once a dim and
// access, 32-bit numbers: a 64-bit division is a call.

#include <cuda_runtime.h>

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

/// Sizes and strides (in elements) of two views in lockstep, outermost first, dims that lie
/// together made one. The innermost dim may count packs of several elements. Where there is more
/// than one dim, a kernel walks over at most kMostSteps.
constexpr std::int64_t kMostSteps = std::int64_t{1} << 31;
struct Walk {
  int dims = 0;
  std::int64_t steps = 1;
  std::int64_t sizes[kMaxDims] = {};
  std::int64_t src[kMaxDims] = {};
  std::int64_t dst[kMaxDims] = {};
};

/// Of the dims from `first` on.
Walk make_walk(const ConstTensorView& src, const ConstTensorView& dst, int first = 0) {
  Walk walk;
  for (int dim = first; dim < dst.dims(); ++dim) {
    const std::int64_t size = dst.size(dim);
    walk.steps *= size;
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

/// Whether the walk can take `pack` elements at a time, which lie at multiples of their size.
bool can_pack(const Walk& walk, int pack, const ConstTensorView& src, const ConstTensorView& dst) {
  const auto aligned = [&](const ConstTensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.data()) %
               static_cast<std::uintptr_t>(pack * size_bytes(view.dtype())) ==
           0;
  };
  const int last = walk.dims - 1;
  if (last < 0 || walk.src[last] != 1 || walk.dst[last] != 1 || walk.sizes[last] % pack != 0 ||
      !aligned(src) || !aligned(dst))
    return false;
  for (int dim = 0; dim < last; ++dim) {
    if (walk.src[dim] % pack != 0 || walk.dst[dim] % pack != 0) return false;
  }
  return true;
}
void take_packs(Walk& walk, int pack) {
  const int last = walk.dims - 1;
  walk.sizes[last] /= pack;
  walk.src[last] = walk.dst[last] = pack;
  walk.steps /= pack;
}

template <class T, int kPack>
struct alignas(kPack * sizeof(T)) Pack {
  T at[kPack];
};
template <int kPack, class T>
__device__ const Pack<T, kPack>& pack_at(const T* data) {
  return *reinterpret_cast<const Pack<T, kPack>*>(data);
}
template <int kPack, class T>
__device__ Pack<T, kPack>& pack_at(T* data) {
  return *reinterpret_cast<Pack<T, kPack>*>(data);
}

// What happens at a step of a walk.

struct Move {
  template <class T, int kPack>
  __device__ static void apply(const Pack<T, kPack>& from, Pack<T, kPack>& to) {
    to = from;
  }
};
/// By way of float, as copy() on the host does.
struct Cast {
  template <class From, class To, int kPack>
  __device__ static void apply(const Pack<From, kPack>& from, Pack<To, kPack>& to) {
    Pack<To, kPack> cast;
#pragma unroll
    for (int i = 0; i < kPack; ++i) store_float(load_float(from.at[i]), cast.at[i]);
    to = cast;
  }
};
struct Add {
  template <int kPack>
  __device__ static void apply(const Pack<float, kPack>& from, Pack<float, kPack>& to) {
    Pack<float, kPack> sum = to;
#pragma unroll
    for (int i = 0; i < kPack; ++i) sum.at[i] += from.at[i];
    to = sum;
  }
};

struct Offsets {
  std::int64_t src, dst;
};
/// Where step `step` of the walk is, from the views' first elements.
__device__ inline Offsets offsets_of(const Walk& walk, std::int64_t step) {
  Offsets at{0, 0};
  for (int dim = walk.dims - 1; dim > 0; --dim) {
    const auto size = static_cast<std::uint32_t>(walk.sizes[dim]);
    const std::uint32_t next = static_cast<std::uint32_t>(step) / size;
    const std::int64_t index = static_cast<std::uint32_t>(step) - next * size;
    at.src += index * walk.src[dim];
    at.dst += index * walk.dst[dim];
    step = next;
  }
  if (walk.dims > 0) {
    at.src += step * walk.src[0];
    at.dst += step * walk.dst[0];
  }
  return at;
}

/// Neighbouring threads take neighbouring steps of the innermost dim.
template <class Operation, int kPack, class From, class To>
__global__ void __launch_bounds__(kThreads) walk_kernel(const From* src, To* dst, const Walk walk) {
  const std::int64_t all = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t step = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       step < walk.steps; step += all) {
    const Offsets at = offsets_of(walk, step);
    Operation::apply(pack_at<kPack>(src + at.src), pack_at<kPack>(dst + at.dst));
  }
}

template <int kPack, class T>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(T* dst, const Pack<T, kPack> value, const Walk walk) {
  const std::int64_t all = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t step = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       step < walk.steps; step += all)
    pack_at<kPack>(dst + offsets_of(walk, step).dst) = value;
}

/// Rows of a list in lockstep: where rows lie in the two views, and the walk within a row, which
/// `threads` threads share.
struct RowWalk {
  const RowMoves::Entry* entries;
  std::int64_t count, rows, src_stride, dst_stride;
  int threads;
  Walk row;
};

/// A row is found in the list by its number.
template <class Operation, int kPack, class From, class To>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const From* src, To* dst, const RowWalk walk) {
  const int together = kThreads / walk.threads;  // rows of a block
  const int own = static_cast<int>(threadIdx.x) / walk.threads,
            thread = static_cast<int>(threadIdx.x) % walk.threads;
  const std::int64_t all = static_cast<std::int64_t>(gridDim.x) * together;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * together + own; row < walk.rows;
       row += all) {
    std::int64_t low = 0, high = walk.count;  // the last entry that begins at or before the row
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (walk.entries[middle].first <= row ? low : high) = middle;
    }
    const RowMoves::Entry entry = walk.entries[low];
    const From* src_row = src + (entry.from + row - entry.first) * walk.src_stride;
    To* dst_row = dst + (entry.to + row - entry.first) * walk.dst_stride;
    for (std::int64_t step = thread; step < walk.row.steps; step += walk.threads) {
      const Offsets at = offsets_of(walk.row, step);
      Operation::apply(pack_at<kPack>(src_row + at.src), pack_at<kPack>(dst_row + at.dst));
    }
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, const Stream& stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(kMaxBlocks, blocks)));
  config.blockDim = dim3(kThreads);
  config.stream = cuda_stream(stream);
  LONGHAUL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}
std::int64_t blocks_for(const Walk& walk) { return (walk.steps + kThreads - 1) / kThreads; }

/// Calls body(part, first elements of it in the two views): the walk in parts that a kernel can do.
template <class Body>
void in_parts(const Walk& walk, const Body& body) {
  if (walk.dims <= 1 || walk.steps <= kMostSteps) return body(walk, 0, 0);
  const std::int64_t inner = walk.steps / walk.sizes[0], together = kMostSteps / inner;
  LONGHAUL_CHECK(together > 0, "a view of ", walk.steps, " elements or packs, ", inner,
                 " of them in each index of its outermost dim; expected at most ", kMostSteps);
  for (std::int64_t begin = 0; begin < walk.sizes[0]; begin += together) {
    Walk part = walk;
    part.sizes[0] = std::min(together, walk.sizes[0] - begin);
    part.steps = part.sizes[0] * inner;
    body(part, begin * walk.src[0], begin * walk.dst[0]);
  }
}

/// `From` and `To` have the sizes of the views' dtypes.
template <class Operation, int kPack, class From, class To>
void run(const ConstTensorView& src, const TensorView& dst, const Stream& stream) {
  Walk walk = make_walk(src, dst);
  const bool packs = can_pack(walk, kPack, src, dst);
  if (packs) take_packs(walk, kPack);
  in_parts(walk, [&](const Walk& part, std::int64_t src_first, std::int64_t dst_first) {
    const From* from = reinterpret_cast<const From*>(src.data()) + src_first;
    To* to = reinterpret_cast<To*>(dst.data()) + dst_first;
    if (packs) {
      launch(walk_kernel<Operation, kPack, From, To>, blocks_for(part), stream, from, to, part);
    } else {
      launch(walk_kernel<Operation, 1, From, To>, blocks_for(part), stream, from, to, part);
    }
  });
}

template <class Operation, int kPack, class From, class To>
void run_rows(const ConstTensorView& src, const TensorView& dst, const RowList& rows,
              const Stream& stream) {
  RowWalk walk{reinterpret_cast<const RowMoves::Entry*>(rows.table),
               std::ssize(rows.moves->entries()),
               rows.moves->rows(),
               src.stride(0),
               dst.stride(0),
               32,
               make_walk(src, dst, 1)};
  const bool packs = src.stride(0) % kPack == 0 && dst.stride(0) % kPack == 0 &&
                     can_pack(walk.row, kPack, src, dst);
  if (packs) take_packs(walk.row, kPack);
  LONGHAUL_CHECK(walk.row.steps <= kMostSteps, "rows of ", walk.row.steps,
                 " elements or packs; expected at most ", kMostSteps);
  while (walk.threads < kThreads && walk.threads < walk.row.steps) walk.threads *= 2;
  const std::int64_t together = kThreads / walk.threads;
  const std::int64_t blocks = (walk.rows + together - 1) / together;
  const auto* from = reinterpret_cast<const From*>(src.data());
  auto* to = reinterpret_cast<To*>(dst.data());
  if (packs) {
    launch(rows_kernel<Operation, kPack, From, To>, blocks, stream, from, to, walk);
  } else {
    launch(rows_kernel<Operation, 1, From, To>, blocks, stream, from, to, walk);
  }
}

template <class From>
void cast_from(const ConstTensorView& src, const TensorView& dst, const Stream& stream) {
  switch (dst.dtype()) {
    case DType::float32:
      return run<Cast, 4, From, float>(src, dst, stream);
    case DType::bfloat16:
      return run<Cast, 4, From, BFloat16>(src, dst, stream);
    case DType::float64:
      return run<Cast, 2, From, double>(src, dst, stream);
    default:
      fail(ExitCode::internal, "no cast from ", name(src.dtype()), " to ", name(dst.dtype()));
  }
}

template <class T>
void fill_with(const TensorView& dst, T value, const Stream& stream) {
  constexpr int kPack = 16 / sizeof(T);
  Walk walk = make_walk(dst, dst);
  const bool packs = can_pack(walk, kPack, dst, dst);
  if (packs) take_packs(walk, kPack);
  Pack<T, kPack> values;
  std::fill_n(values.at, kPack, value);
  in_parts(walk, [&](const Walk& part, std::int64_t first, std::int64_t) {
    T* to = reinterpret_cast<T*>(dst.data()) + first;
    if (packs) {
      launch(fill_kernel<kPack, T>, blocks_for(part), stream, to, values, part);
    } else {
      launch(fill_kernel<1, T>, blocks_for(part), stream, to, Pack<T, 1>{{value}}, part);
    }
  });
}

void check_device(const char* what, const ConstTensorView& view, const Stream& stream) {
  LONGHAUL_CHECK(view.device() == stream.device(), what, " on stream '", stream.name(), "' of ",
                 to_string(stream.device()), " of memory on ", to_string(view.device()));
}

bool no_rows(const TensorView& dst, const RowList& rows) {
  std::int64_t of_a_row = 1;
  for (int dim = 1; dim < dst.dims(); ++dim) of_a_row *= dst.size(dim);
  if (rows.moves->rows() == 0 || of_a_row == 0) return true;
  LONGHAUL_CHECK(rows.table != nullptr, "a list of rows without its device table");
  return false;
}

}  // namespace

void cuda_copy_on_device(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  if (src.dtype() == dst.dtype()) {
    switch (size_bytes(src.dtype())) {
      case 1:
        return run<Move, 16, std::uint8_t, std::uint8_t>(src, dst, stream);
      case 2:
        return run<Move, 8, std::uint16_t, std::uint16_t>(src, dst, stream);
      case 4:
        return run<Move, 4, std::uint32_t, std::uint32_t>(src, dst, stream);
      default:
        return run<Move, 2, std::uint64_t, std::uint64_t>(src, dst, stream);
    }
  }
  switch (src.dtype()) {
    case DType::float32:
      return cast_from<float>(src, dst, stream);
    case DType::bfloat16:
      return cast_from<BFloat16>(src, dst, stream);
    case DType::float64:
      return cast_from<double>(src, dst, stream);
    default:
      fail(ExitCode::internal, "no cast from ", name(src.dtype()), " to ", name(dst.dtype()));
  }
}

void cuda_accumulate(ConstTensorView src, TensorView dst, const Stream& stream) {
  if (dst.elements() == 0) return;
  check_device("accumulate", src, stream);
  check_device("accumulate", dst, stream);
  run<Add, 4, float, float>(src, dst, stream);
}

void cuda_copy_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                    const Stream& stream) {
  if (no_rows(dst, rows)) return;
  if (src.dtype() == dst.dtype()) {
    switch (size_bytes(src.dtype())) {
      case 2:
        return run_rows<Move, 8, std::uint16_t, std::uint16_t>(src, dst, rows, stream);
      case 4:
        return run_rows<Move, 4, std::uint32_t, std::uint32_t>(src, dst, rows, stream);
      default:
        break;
    }
  } else if (src.dtype() == DType::float32 && dst.dtype() == DType::bfloat16) {
    return run_rows<Cast, 4, float, BFloat16>(src, dst, rows, stream);
  } else if (src.dtype() == DType::bfloat16 && dst.dtype() == DType::float32) {
    return run_rows<Cast, 4, BFloat16, float>(src, dst, rows, stream);
  }
  fail(ExitCode::internal, "no copy of rows from ", name(src.dtype()), " to ", name(dst.dtype()));
}

void cuda_accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                          const Stream& stream) {
  if (no_rows(dst, rows)) return;
  run_rows<Add, 4, float, float>(src, dst, rows, stream);
}

void cuda_fill(TensorView dst, double value, const Stream& stream) {
  if (dst.elements() == 0) return;
  check_device("fill", dst, stream);
  switch (dst.dtype()) {
    case DType::float32:
      return fill_with(dst, std::bit_cast<std::uint32_t>(static_cast<float>(value)), stream);
    case DType::bfloat16:
      return fill_with(dst, BFloat16(static_cast<float>(value)).bits, stream);
    case DType::float64:
      return fill_with(dst, std::bit_cast<std::uint64_t>(value), stream);
    case DType::int32:
      return fill_with(dst, static_cast<std::uint32_t>(static_cast<std::int32_t>(value)), stream);
    case DType::int64:
      return fill_with(dst, static_cast<std::uint64_t>(static_cast<std::int64_t>(value)), stream);
    case DType::uint8:
      return fill_with(dst, static_cast<std::uint8_t>(value), stream);
  }
}

}  // namespace longhaul::runtime::detail

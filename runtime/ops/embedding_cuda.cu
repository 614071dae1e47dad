// Token embedding on CUDA. The gradient of a token's row is the sum over the rows that hold the
// token, in order, as on the CPU: a stable radix sort brings those together, and one block adds
// them. No atomics, so reruns give the same bits.

#include <bit>
#include <limits>

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

template <int N, class From, class To>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const From* table, const std::int32_t* tokens, To* out, std::int64_t rows,
                     std::int64_t vocabulary, std::int64_t h) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const std::int64_t token = tokens[row];
    const bool known = token >= 0 && token < vocabulary;
    for (std::int64_t i = threadIdx.x * N; i < h; i += blockDim.x * N) {
      float values[N];
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = NAN;
      if (known) load(table + token * h + i, values);
      store(values, out + row * h + i);
    }
  }
}

/// A row and the token that it holds.
struct Entry {
  std::int32_t token;
  std::int32_t row;  // of a token outside the vocabulary: -1 - row, and the token is 0
};

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kTile = kThreads;  // entries, one a thread
static_assert(kDigits == kThreads, "a thread counts one digit");

__device__ int digit_of(const Entry& entry, int shift) {
  return entry.token >> shift & (kDigits - 1);
}

__global__ void __launch_bounds__(kThreads)
    list_kernel(const std::int32_t* tokens, Entry* entries, int rows, std::int64_t vocabulary) {
  const int row = static_cast<int>(blockIdx.x * kTile + threadIdx.x);
  if (row >= rows) return;
  const std::int32_t token = tokens[row];
  entries[row] = token >= 0 && token < vocabulary ? Entry{token, row} : Entry{0, -1 - row};
}

/// counts[digit, tile] of a tile's entries.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const Entry* entries, int shift, int rows, int* counts) {
  __shared__ int digits[kTile];
  const int thread = static_cast<int>(threadIdx.x);
  const int at = static_cast<int>(blockIdx.x) * kTile + thread;
  digits[thread] = at < rows ? digit_of(entries[at], shift) : -1;
  __syncthreads();
  int count = 0;
  for (int i = 0; i < kTile; ++i) count += digits[i] == thread;
  counts[static_cast<std::int64_t>(thread) * gridDim.x + blockIdx.x] = count;
}

/// Each digit's counts become their sums over the tiles before; totals[digit] over all of them. A
/// warp a digit.
__global__ void __launch_bounds__(kThreads) scan_kernel(int* counts, int tiles, int* totals) {
  const int digit = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* of_digit = counts + static_cast<std::int64_t>(digit) * tiles;
  int before = 0;
  for (int base = 0; base < tiles; base += 32) {
    const int tile = base + lane;
    const int count = tile < tiles ? of_digit[tile] : 0;
    int sum = count;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, lanes);
      if (lane >= lanes) sum += other;
    }
    if (tile < tiles) of_digit[tile] = before + sum - count;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  if (lane == 0) totals[digit] = before;
}

/// Entries to their places in the order of this digit; those of a digit keep their order.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const Entry* from, Entry* to, int shift, int rows, const int* counts,
                   const int* totals) {
  __shared__ int digits[kTile], of_digit[kDigits], starts[kDigits];
  const int thread = static_cast<int>(threadIdx.x);
  const int at = static_cast<int>(blockIdx.x) * kTile + thread;
  const Entry entry = at < rows ? from[at] : Entry{0, 0};
  digits[thread] = at < rows ? digit_of(entry, shift) : -1;
  of_digit[thread] = totals[thread];
  __syncthreads();
  int start = counts[static_cast<std::int64_t>(thread) * gridDim.x + blockIdx.x];
  for (int digit = 0; digit < thread; ++digit) start += of_digit[digit];
  starts[thread] = start;
  __syncthreads();
  if (at >= rows) return;
  int rank = 0;
  for (int i = 0; i < thread; ++i) rank += digits[i] == digits[thread];
  to[starts[digits[thread]] + rank] = entry;
}

/// The block of the first entry of a token adds all of the token's rows, some ahead of their sum.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(const Entry* entries, const T* dout, float* dtable, int rows, std::int64_t h) {
  constexpr int kAhead = 4;
  const int first = static_cast<int>(blockIdx.x);
  const std::int32_t token = entries[first].token;
  if (first > 0 && entries[first - 1].token == token) return;
  for (std::int64_t i = threadIdx.x * N; i < h; i += blockDim.x * N) {
    float* target = dtable + token * h + i;
    float sums[N];
    load(target, sums);
    int count = kAhead;
    for (int at = first; count == kAhead; at += kAhead) {
      float values[kAhead][N] = {};
      count = 0;
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (at + a >= rows) continue;
        const Entry entry = entries[at + a];
        if (entry.token != token) continue;
        count = a + 1;
        if (entry.row >= 0) {
          load(dout + entry.row * h + i, values[a]);
        } else {
#pragma unroll
          for (int j = 0; j < N; ++j) values[a][j] = NAN;
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (a >= count) continue;
#pragma unroll
        for (int j = 0; j < N; ++j) sums[j] += values[a][j];
      }
    }
    store(sums, target);
  }
}

/// `rows` entries sorted by token, those of a token by row; valid until the buffer is reused.
struct SortedRows {
  Buffer memory;
  const Entry* entries;
};

SortedRows sort_rows(const std::int32_t* tokens, int rows, std::int64_t vocabulary,
                     const Stream& stream) {
  const int tiles = (rows + kTile - 1) / kTile;
  const std::int64_t entries_bytes = rows * static_cast<std::int64_t>(sizeof(Entry));
  const std::int64_t counts_bytes =
      static_cast<std::int64_t>(kDigits) * tiles * static_cast<std::int64_t>(sizeof(int));
  Buffer memory = stream.allocate(2 * entries_bytes + counts_bytes +
                                  kDigits * static_cast<std::int64_t>(sizeof(int)));
  auto* from = reinterpret_cast<Entry*>(memory.data());
  auto* to = reinterpret_cast<Entry*>(memory.data() + entries_bytes);
  auto* counts = reinterpret_cast<int*>(memory.data() + 2 * entries_bytes);
  int* totals = counts + static_cast<std::int64_t>(kDigits) * tiles;
  launch(list_kernel, tiles, kThreads, stream, tokens, from, rows, vocabulary);
  const auto bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(vocabulary - 1)));
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    launch(count_kernel, tiles, kThreads, stream, from, shift, rows, counts);
    launch(scan_kernel, kDigits / kWarps, kThreads, stream, counts, tiles, totals);
    launch(scatter_kernel, tiles, kThreads, stream, from, to, shift, rows, counts, totals);
    std::swap(from, to);
  }
  return {std::move(memory), from};
}

}  // namespace

void cuda_embedding(ConstTensorView table, ConstTensorView tokens, TensorView out,
                    const Stream& stream) {
  const std::int64_t rows = tokens.size(0), h = table.size(1);
  if (rows * h == 0) return;
  with_activation("embedding", table.dtype(), [&]<class From>() {
    with_activation("embedding", out.dtype(), [&]<class To>() {
      with_count(aligned_rows(h, table.data(), out.data()), [&](auto count) {
        launch(embedding_kernel<count(), From, To>, blocks_for(rows, 1), threads_for(h / count()),
               stream, table.as<From>(), tokens.as<std::int32_t>(), out.as<To>(), rows,
               table.size(0), h);
      });
    });
  });
}

void cuda_embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                             const Stream& stream) {
  const std::int64_t rows = tokens.size(0), vocabulary = dtable.size(0), h = dtable.size(1);
  if (rows * h * vocabulary == 0) return;
  LONGHAUL_CHECK(rows <= std::numeric_limits<std::int32_t>::max() - kTile &&
                     vocabulary <= std::numeric_limits<std::int32_t>::max(),
                 "embedding_backward: ", rows, " rows of ", vocabulary,
                 " tokens; on CUDA expected fewer than 2^31 of both");
  const SortedRows sorted =
      sort_rows(tokens.as<std::int32_t>(), static_cast<int>(rows), vocabulary, stream);
  with_activation("embedding_backward", dout.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, dout.data(), dtable.data()), [&](auto count) {
      launch(add_rows_kernel<count(), T>, rows, threads_for(h / count()), stream, sorted.entries,
             dout.as<T>(), dtable.as<float>(), static_cast<int>(rows), h);
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

// Products of bfloat16 by the CPU's instructions for them (AMX tiles, or AVX-512's dot product),
// which oneDNN has kernels for. Their best ones read b in a layout of their own and know dense
// matrices only. So b is packed once, a panel of columns at a time, and shared by all tiles of c;
// each tile is summed in fp32 by single-threaded calls, because a library cuts work by the number
// of threads, from rows of a that are copied where they are not dense, and then stored. Tiles, and
// with them the order of every sum, follow from the product's shape alone.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <dnnl.hpp>
#include <memory>
#include <vector>

#include "runtime/cpu_level.h"
#include "runtime/ops/checks.h"
#include "runtime/ops/matmul_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kTileRows = 256, kTileCols = 512;  // at most
constexpr std::int64_t kTilesDown = 4;  // their number is a multiple of it: teams share evenly
// Of a call. Copied rows of a power of two would fall into few sets of the caches.
constexpr std::int64_t kDepth = 1984;
constexpr std::int64_t kPanelDepth = 8 * kDepth;  // sums over more pass through c
constexpr std::int64_t kPanelElements = kPanelDepth * kTileCols;
constexpr std::int64_t kLine = 64;               // alignment, bytes
constexpr std::int64_t kLibraryBytes = 1 << 20;  // what a call takes to work in, about

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

struct Extent {
  std::int64_t begin = 0, count = 0;
};
std::vector<Extent> cut(Extent whole, std::int64_t step) {
  std::vector<Extent> parts;
  for (std::int64_t at = 0; at < whole.count; at += step)
    parts.push_back({whole.begin + at, std::min(step, whole.count - at)});
  return parts;
}

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// What the library reads or writes there; its inputs are not const to it.
dnnl::memory at(const dnnl::memory::desc& layout, const void* data) {
  return {layout, engine(), const_cast<void*>(data)};
}

/// The library's kernel for tiles of a size, and the one that packs their part of b. It keeps what
/// it has compiled, so neither is made twice.
struct Kernel {
  std::int64_t rows, cols, depth;
  bool adds;
  dnnl::memory::desc a, plain_b, packed_b, sums, scratch;
  dnnl::matmul multiply;
  dnnl::reorder pack;

  bool is_of(std::int64_t r, std::int64_t c, std::int64_t d, bool adding) const {
    return rows == r && cols == c && depth == d && adds == adding;
  }
};

/// With b packed as `same_b` has it, if there is one.
Kernel kernel_of(const MatrixOperand& b, std::int64_t rows, std::int64_t cols, std::int64_t depth,
                 bool adds, const Kernel* same_b) {
  using dnnl::memory;
  constexpr auto kBFloat16 = memory::data_type::bf16;
  const memory::desc a({rows, depth}, kBFloat16, memory::dims{depth, 1}),
      plain({depth, cols}, kBFloat16,
            b.transposed ? memory::dims{1, b.leading} : memory::dims{b.leading, 1}),
      any({depth, cols}, kBFloat16, memory::format_tag::any),
      sums({rows, cols}, memory::data_type::f32, memory::dims{cols, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops sum;
  sum.append_sum(1.0f);
  if (adds) attributes.set_post_ops(sum);
  const dnnl::matmul::primitive_desc plan({a, same_b == nullptr ? any : same_b->packed_b, sums},
                                          attributes, engine());
  const memory::desc packed = plan.weights_desc();
  return {rows,
          cols,
          depth,
          adds,
          a,
          plain,
          packed,
          sums,
          plan.scratchpad_desc(),
          dnnl::matmul(plan),
          dnnl::reorder({engine(), plain, engine(), packed})};
}

/// to[r * leading_to + k] = from[k * leading + r] of 8 rows and 8 k.
void transpose_block(const BFloat16* from, std::int64_t leading, BFloat16* to,
                     std::int64_t leading_to) {
  __m128i in[8], pairs[8], quads[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * leading));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm_unpacklo_epi16(in[i], in[i + 1]);
    pairs[i + 1] = _mm_unpackhi_epi16(in[i], in[i + 1]);
  }
#pragma GCC unroll 4
  for (int i : {0, 1, 4, 5}) {
    const int at = i / 4 * 4 + i % 2 * 2;
    quads[at] = _mm_unpacklo_epi32(pairs[i], pairs[i + 2]);
    quads[at + 1] = _mm_unpackhi_epi32(pairs[i], pairs[i + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i * leading_to),
                     _mm_unpacklo_epi64(quads[i], quads[i + 4]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (2 * i + 1) * leading_to),
                     _mm_unpackhi_epi64(quads[i], quads[i + 4]));
  }
}

/// to[r * depth + k] = from[k * leading + r], by squares of whole cache lines of both.
void transpose(const BFloat16* from, std::int64_t leading, std::int64_t rows, std::int64_t depth,
               BFloat16* to) {
  constexpr std::int64_t kBlock = 8, kSquare = 32;
  const std::int64_t whole_rows = rows / kBlock * kBlock, whole_depth = depth / kBlock * kBlock;
  for (std::int64_t k = 0; k < whole_depth; k += kSquare) {
    const std::int64_t end_k = std::min(k + kSquare, whole_depth);
    for (std::int64_t r = 0; r < whole_rows; r += kSquare) {
      const std::int64_t end_r = std::min(r + kSquare, whole_rows);
      for (std::int64_t i = end_k + 3 * kSquare; i < std::min(end_k + 4 * kSquare, depth); ++i)
        __builtin_prefetch(from + i * leading + r, 0, 2);
      for (std::int64_t i = k; i < end_k; i += kBlock) {
        for (std::int64_t j = r; j < end_r; j += kBlock)
          transpose_block(from + i * leading + j, leading, to + j * depth + i, depth);
      }
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t r = k < whole_depth ? whole_rows : 0; r < rows; ++r)
      to[r * depth + k] = from[k * leading + r];
  }
}

/// Rows of `depth` elements, one behind the other: a's own, or a copy.
const BFloat16* dense_rows(const MatrixOperand& a, const Extent& rows, const Extent& depth,
                           BFloat16* copy) {
  const BFloat16* from = a.view.as<BFloat16>() + offset_of(a, rows.begin, depth.begin);
  if (a.transposed) {
    transpose(from, a.leading, rows.count, depth.count, copy);
    return copy;
  }
  if (a.leading == depth.count || rows.count == 1) return from;
  for (std::int64_t r = 0; r < rows.count; ++r)
    std::copy_n(from + r * a.leading, depth.count, copy + r * depth.count);
  return copy;
}

/// The sizes of the parts that cut() makes.
std::vector<std::int64_t> sizes_of_parts(std::int64_t n, std::int64_t step) {
  std::vector<std::int64_t> sizes;
  if (n >= step) sizes.push_back(step);
  if (n % step != 0) sizes.push_back(n % step);
  return sizes;
}

std::int64_t bytes_of(const dnnl::memory::desc& layout) {
  return round_up(static_cast<std::int64_t>(layout.get_size()), kLine);
}

/// While it lives, the library makes and runs kernels for the calling thread alone.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

[[noreturn]] void fail_with(const Product& product, dnnl_status_t status) {
  fail(status == dnnl_out_of_memory ? ExitCode::memory : ExitCode::internal,
       "oneDNN failed with status ", static_cast<int>(status), " on bfloat16 [", product.rows(),
       ",", product.depth(), "] by [", product.depth(), ",", product.cols(), "]");
}

class Multiplication {
 public:
  explicit Multiplication(const Product& product) : product_(product) {
    const std::int64_t least = (product.rows() + kTileRows - 1) / kTileRows;
    const std::int64_t tiles_down = round_up(least, kTilesDown);
    tile_rows_ = round_up((product.rows() + tiles_down - 1) / tiles_down, 16);
    panel_cols_ = kPanelElements / std::min(product.depth(), kPanelDepth) / kTileCols * kTileCols;
    make_kernels();
    const std::int64_t depth = std::min(product.depth(), kDepth),
                       cols = std::min(product.cols(), kTileCols);
    copy_bytes_ = round_up(tile_rows_ * depth * size_bytes(DType::bfloat16), kLine);
    sums_bytes_ = round_up(tile_rows_ * cols * size_bytes(DType::float32), kLine);
    const auto blocks = [](std::int64_t n, std::int64_t most, std::int64_t of) {
      return (std::min(n, most) + of - 1) / of;
    };
    packed_bytes_ = block_bytes_ * blocks(product.depth(), kPanelDepth, kDepth) *
                    blocks(product.cols(), panel_cols_, kTileCols);
  }

  std::int64_t bytes(int threads) const { return packed_bytes_ + threads * thread_bytes(); }

  /// Throws if a call of the library failed.
  void run(std::byte* memory) const {
    std::atomic<dnnl_status_t> status = dnnl_success;
#pragma omp parallel
    {
      const OneThread calls_stay_on_this;
      std::byte* mine = memory + packed_bytes_ + omp_get_thread_num() * thread_bytes();
      for (const Extent& cols : cut({0, product_.cols()}, panel_cols_)) {
        for (const Extent& depth : cut({0, product_.depth()}, kPanelDepth))
          run_panel({cut(cols, kTileCols), cut(depth, kDepth)}, memory, mine, status);
      }
    }
    if (const dnnl_status_t failed = status; failed != dnnl_success) fail_with(product_, failed);
  }

 private:
  struct Panel {
    std::vector<Extent> cols, depth;  // of b's blocks
    std::int64_t blocks() const { return std::ssize(cols) * std::ssize(depth); }
  };

  std::int64_t thread_bytes() const { return copy_bytes_ + sums_bytes_ + scratch_bytes_; }

  void make_kernels() {
    const OneThread kernels_are_for_one;
    for (const std::int64_t rows : sizes_of_parts(product_.rows(), tile_rows_)) {
      for (const std::int64_t cols : sizes_of_parts(product_.cols(), kTileCols)) {
        for (const Extent& depth : cut({0, product_.depth()}, kDepth)) {
          const bool adds = depth.begin % kPanelDepth != 0;
          if (find(rows, cols, depth.count, adds) != nullptr) continue;
          const auto same_b = std::ranges::find_if(kernels_, [&](const Kernel& kernel) {
            return kernel.cols == cols && kernel.depth == depth.count;
          });
          kernels_.push_back(kernel_of(product_.b, rows, cols, depth.count, adds,
                                       same_b == kernels_.end() ? nullptr : &*same_b));
          block_bytes_ = std::max(block_bytes_, bytes_of(kernels_.back().packed_b));
          scratch_bytes_ = std::max(scratch_bytes_, bytes_of(kernels_.back().scratch));
        }
      }
    }
  }

  const Kernel* find(std::int64_t rows, std::int64_t cols, std::int64_t depth, bool adds) const {
    const auto found = std::ranges::find_if(
        kernels_, [&](const Kernel& kernel) { return kernel.is_of(rows, cols, depth, adds); });
    return found == kernels_.end() ? nullptr : &*found;
  }

  /// By all threads of the team: packs b's part, then computes that of the tiles of c.
  void run_panel(const Panel& panel, std::byte* packed, std::byte* mine,
                 std::atomic<dnnl_status_t>& status) const {
    dnnl::stream stream(engine());
    const auto guarded = [&](const auto& body) {
      try {
        body();
      } catch (const dnnl::error& error) {
        status = error.status;
      }
    };
    const std::int64_t columns = std::ssize(panel.cols);
#pragma omp for schedule(dynamic)
    for (std::int64_t block = 0; block < panel.blocks(); ++block)
      guarded([&] { pack(panel, block, packed, stream); });
    const std::vector<Extent> rows = cut({0, product_.rows()}, tile_rows_);
#pragma omp for schedule(dynamic)
    for (std::int64_t tile = 0; tile < std::ssize(rows) * columns; ++tile) {
      guarded([&] {
        compute(panel, rows[static_cast<std::size_t>(tile / columns)], tile % columns, packed, mine,
                stream);
      });
    }
  }

  void pack(const Panel& panel, std::int64_t block, std::byte* packed, dnnl::stream& stream) const {
    const Extent& cols = panel.cols[static_cast<std::size_t>(block % std::ssize(panel.cols))];
    const Extent& depth = panel.depth[static_cast<std::size_t>(block / std::ssize(panel.cols))];
    const Kernel& kernel = *find(std::min(tile_rows_, product_.rows()), cols.count, depth.count,
                                 depth.begin % kPanelDepth != 0);
    dnnl::memory from = at(kernel.plain_b, product_.b.view.as<BFloat16>() +
                                               offset_of(product_.b, depth.begin, cols.begin)),
                 to = at(kernel.packed_b, packed + block * block_bytes_);
    kernel.pack.execute(stream, from, to);
  }

  void compute(const Panel& panel, const Extent& rows, std::int64_t column, const std::byte* packed,
               std::byte* mine, dnnl::stream& stream) const {
    const Extent& cols = panel.cols[static_cast<std::size_t>(column)];
    auto* copy = reinterpret_cast<BFloat16*>(mine);
    auto* sums = reinterpret_cast<float*>(mine + copy_bytes_);
    for (std::int64_t i = 0; i < std::ssize(panel.depth); ++i) {
      const Extent& depth = panel.depth[static_cast<std::size_t>(i)];
      const Kernel& kernel = *find(rows.count, cols.count, depth.count, i > 0);
      const std::byte* block = packed + (i * std::ssize(panel.cols) + column) * block_bytes_;
      kernel.multiply.execute(
          stream, {{DNNL_ARG_SRC, at(kernel.a, dense_rows(product_.a, rows, depth, copy))},
                   {DNNL_ARG_WEIGHTS, at(kernel.packed_b, block)},
                   {DNNL_ARG_DST, at(kernel.sums, sums)},
                   {DNNL_ARG_SCRATCHPAD, at(kernel.scratch, mine + copy_bytes_ + sums_bytes_)}});
    }
    Product stored = product_;
    if (panel.depth.front().begin > 0) stored.addend = {product_.c, false, product_.leading_c};
    store_tile(stored, {rows.begin, cols.begin, rows.count, cols.count}, sums, cols.count);
  }

  const Product product_;
  std::int64_t tile_rows_ = 0, panel_cols_ = 0;
  std::vector<Kernel> kernels_;
  std::int64_t block_bytes_ = 0, packed_bytes_ = 0;                   // of b
  std::int64_t copy_bytes_ = 0, sums_bytes_ = 0, scratch_bytes_ = 0;  // of a thread
};

}  // namespace

/// The library cannot be held to less than the machine has once it is in use, so below that level
/// its kernels are not asked for.
bool onednn_multiplies_bfloat16() {
  return __builtin_cpu_supports("avx512bf16") && cpu_level() == best_cpu_level();
}

bool onednn_takes(const Product& product) {
  const bool whole_sums = product.c.dtype() == DType::float32 || product.depth() <= kPanelDepth;
  return product.a.view.dtype() == DType::bfloat16 && product.b.view.dtype() == DType::bfloat16 &&
         whole_sums && product.multiplications() >= kLargeProduct && onednn_multiplies_bfloat16();
}

void onednn_matmul(const Product& product, const Stream& stream) {
  std::shared_ptr<const Multiplication> multiplication;
  try {
    multiplication = std::make_shared<const Multiplication>(product);
  } catch (const dnnl::error& error) {
    fail_with(product, error.status);
  }
  const Buffer memory = stream.allocate(multiplication->bytes(stream.threads()));
  stream.cpu_task([multiplication, memory = memory.data()] { multiplication->run(memory); });
}

std::int64_t onednn_scratch_bytes(int threads) {
  const std::int64_t thread = kTileRows * kDepth * size_bytes(DType::bfloat16) +
                              kTileRows * kTileCols * size_bytes(DType::float32) + kLibraryBytes;
  return kPanelElements * size_bytes(DType::bfloat16) + threads * thread;
}

}  // namespace longhaul::runtime::ops::detail

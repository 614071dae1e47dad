// The product is cut into fixed tiles of c, each computed by one thread, so neither the tiles nor
// the order of any sum depends on the number of threads. bfloat16 operands are widened a panel at a
// time into scratch: exact products, fp32 sums, and on machines without matrix units faster than
// bfloat16 dot products, which run at half the rate of fp32 multiply-adds.
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "runtime/ops/checks.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kTileRows = 128;
constexpr std::int64_t kTileCols = 256;
constexpr std::int64_t kPanelDepth = 512;                   // of widened bfloat16 operands
constexpr std::int64_t kParallelMultiplications = 1 << 20;  // fewer do not pay for waking a team

struct Panel {
  const float* data = nullptr;
  std::int64_t leading = 1;
};

/// Rows x cols at (row, col) of the operand in fp32: in place, or widened into scratch in the same
/// orientation.
Panel panel(const MatrixOperand& from, std::int64_t row, std::int64_t col, std::int64_t rows,
            std::int64_t cols, float* scratch) {
  const std::int64_t outer_at = from.transposed ? col : row, inner_at = from.transposed ? row : col;
  const std::int64_t offset = outer_at * from.leading + inner_at;
  if (from.view.dtype() == DType::float32) return {from.view.as<float>() + offset, from.leading};
  const BFloat16* source = from.view.as<BFloat16>() + offset;
  const std::int64_t outer = from.transposed ? cols : rows, inner = from.transposed ? rows : cols;
  for (std::int64_t i = 0; i < outer; ++i) {
    const BFloat16* line = source + i * from.leading;
    float* out = scratch + i * inner;
#pragma omp simd
    for (std::int64_t j = 0; j < inner; ++j) out[j] = static_cast<float>(line[j]);
  }
  return {scratch, std::max<std::int64_t>(1, inner)};
}

struct Product {
  MatrixOperand a, b, addend;
  TensorView c;
  std::int64_t leading_c = 1;
  std::int64_t depth_step = 0;
  bool direct = true;  // c is float32: gemm writes into it
};

/// Of a thread.
std::int64_t scratch_floats(DType a, DType b, DType c) {
  std::int64_t floats = 0;
  if (a != DType::float32) floats += kTileRows * kPanelDepth;
  if (b != DType::float32) floats += kTileCols * kPanelDepth;
  if (c != DType::float32) floats += kTileRows * kTileCols;
  return floats;
}

/// fp32 sums of one tile, which may be c's own, and the addend, if any -> c.
template <class T>
void store_tile(const Product& product, const float* sums, std::int64_t leading_sums,
                std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t cols) {
  const MatrixOperand& addend = product.addend;
  for (std::int64_t i = 0; i < rows; ++i) {
    T* out = product.c.as<T>() + (row + i) * product.leading_c + col;
    const float* in = sums + i * leading_sums;
    if (addend.view.data() == nullptr) {
      for (std::int64_t j = 0; j < cols; ++j) out[j] = T(in[j]);
      continue;
    }
    const T* added = addend.view.as<T>() + (row + i) * addend.leading + col;
#pragma omp simd
    for (std::int64_t j = 0; j < cols; ++j) out[j] = T(to_float(added[j]) + in[j]);
  }
}

dnnl_status_t compute_tile(const Product& product, std::int64_t row, std::int64_t col,
                           float* scratch) {
  const std::int64_t depth = product.a.view.size(1);
  const std::int64_t rows = std::min(kTileRows, product.c.size(0) - row);
  const std::int64_t cols = std::min(kTileCols, product.c.size(1) - col);
  float* a_scratch = scratch;
  float* b_scratch =
      a_scratch + (product.a.view.dtype() != DType::float32 ? kTileRows * kPanelDepth : 0);
  float* c_scratch =
      b_scratch + (product.b.view.dtype() != DType::float32 ? kTileCols * kPanelDepth : 0);
  float* c = product.direct ? product.c.as<float>() + row * product.leading_c + col : c_scratch;
  const std::int64_t leading_c = product.direct ? product.leading_c : cols;
  const bool onto_c = product.addend.view.data() == product.c.data();
  for (std::int64_t at = 0; at < depth; at += product.depth_step) {
    const std::int64_t count = std::min(product.depth_step, depth - at);
    const Panel a = panel(product.a, row, at, rows, count, a_scratch);
    const Panel b = panel(product.b, at, col, count, cols, b_scratch);
    const bool add = at > 0 || (product.direct && onto_c);
    const dnnl_status_t status = dnnl_sgemm(
        product.a.transposed ? 'T' : 'N', product.b.transposed ? 'T' : 'N', rows, cols, count, 1.0f,
        a.data, a.leading, b.data, b.leading, add ? 1.0f : 0.0f, c, leading_c);
    if (status != dnnl_success) return status;
  }
  if (!product.direct) {
    store_tile<BFloat16>(product, c, leading_c, row, col, rows, cols);
  } else if (product.addend.view.data() != nullptr && !onto_c) {
    store_tile<float>(product, c, leading_c, row, col, rows, cols);
  }
  return dnnl_success;
}

void multiply(const Product& product, float* scratch, std::int64_t scratch_step) {
  const std::int64_t row_tiles = (product.c.size(0) + kTileRows - 1) / kTileRows;
  const std::int64_t col_tiles = (product.c.size(1) + kTileCols - 1) / kTileCols;
  const std::int64_t multiplications = product.c.elements() * product.a.view.size(1);
  const bool parallel = row_tiles * col_tiles > 1 && multiplications >= kParallelMultiplications;
  std::atomic<dnnl_status_t> status = dnnl_success;
#pragma omp parallel if (parallel)
  {
    // Each gemm runs on its calling thread: oneDNN would otherwise cut k by the number of threads.
    // The setting is this region's own.
    omp_set_num_threads(1);
    float* mine = scratch + omp_get_thread_num() * scratch_step;
#pragma omp for schedule(dynamic)
    for (std::int64_t tile = 0; tile < row_tiles * col_tiles; ++tile) {
      const dnnl_status_t result =
          compute_tile(product, tile / col_tiles * kTileRows, tile % col_tiles * kTileCols, mine);
      if (result != dnnl_success) status = result;
    }
  }
  const dnnl_status_t result = status;
  LONGHAUL_CHECK(result == dnnl_success, "oneDNN gemm failed with status ",
                 static_cast<int>(result), " for c[", product.c.size(0), ",", product.c.size(1),
                 "], k ", product.a.view.size(1));
}

}  // namespace

void cpu_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                TensorView c, std::int64_t leading_c, const Stream& stream) {
  Product product{a, b, addend, c, leading_c, 0, c.dtype() == DType::float32};
  const bool widened = a.view.dtype() != DType::float32 || b.view.dtype() != DType::float32;
  product.depth_step = widened ? kPanelDepth : a.view.size(1);
  const std::int64_t step = scratch_floats(a.view.dtype(), b.view.dtype(), c.dtype());
  const Buffer scratch =
      stream.allocate(step * stream.threads() * static_cast<std::int64_t>(sizeof(float)));
  float* floats = reinterpret_cast<float*>(scratch.data());
  stream.cpu_task([product, floats, step] { multiply(product, floats, step); });
}

}  // namespace longhaul::runtime::ops::detail

namespace longhaul::runtime::ops {

std::int64_t cpu_matmul_scratch_bytes(DType dtype, int threads) {
  return detail::scratch_floats(dtype, dtype, dtype) * threads *
         static_cast<std::int64_t>(sizeof(float));
}

}  // namespace longhaul::runtime::ops

#pragma once
// Private to the CPU's matmul: a product, and who computes it.

#include <cstdint>

#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

/// c = a b, or a b + addend where the addend has data.
struct Product {
  MatrixOperand a, b, addend;
  TensorView c;
  std::int64_t leading_c = 1;

  std::int64_t rows() const { return c.size(0); }
  std::int64_t cols() const { return c.size(1); }
  std::int64_t depth() const { return a.view.size(1); }
  std::int64_t multiplications() const { return rows() * cols() * depth(); }
  bool adds() const { return addend.view.data() != nullptr; }
  bool adds_to_c() const { return adds() && addend.view.data() == c.data(); }
};

/// A part of c.
struct TileOfC {
  std::int64_t row = 0, col = 0, rows = 0, cols = 0;
};

/// Elements from the operand's first to (row, col).
inline std::int64_t offset_of(const MatrixOperand& operand, std::int64_t row, std::int64_t col) {
  return operand.transposed ? col * operand.leading + row : row * operand.leading + col;
}

/// c's tile <- sums in fp32, and the product's addend.
void store_tile(const Product& product, const TileOfC& tile, const float* sums,
                std::int64_t leading_sums);

// Of multiplications. Smaller products stay on the stream's thread, which waking a team would only
// delay, or are not worth much memory, or the kernel that a library makes for their shape.
constexpr std::int64_t kParallelProduct = 1 << 20, kLargeProduct = 1 << 24;

/// Whether oneDNN has fast kernels for bfloat16 here, at the level in use.
bool onednn_multiplies_bfloat16();
/// Whether onednn_matmul() computes this product.
bool onednn_takes(const Product& product);
/// bfloat16 operands, multiplied by the CPU's instructions for them.
void onednn_matmul(const Product& product, const Stream& stream);
/// Most scratch of it on a stream of so many threads.
std::int64_t onednn_scratch_bytes(int threads);

}  // namespace longhaul::runtime::ops::detail

#pragma once
// Dense matrix products.

#include "runtime/ops/write.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// The transpose of a 2-d view: the same memory, dims exchanged.
ConstTensorView transposed(ConstTensorView matrix);

/// c = a b, or c += a b, with fp32 accumulation.
/// Shapes: a[m,k], b[k,n] float32 or bfloat16 (they may differ) -> c[m,n] float32 or bfloat16. In a
/// and b one dim has stride 1 (either: see transposed()); c's last dim has stride 1. Any size may
/// be zero. The same shapes and strides give the same bits, whatever the number of threads; on CUDA
/// alignments count too. float32 is never rounded to less: where one operand is bfloat16, or only c
/// is, CUDA multiplies in float32 on copies, which are slower than equal dtypes; it adds to a
/// bfloat16 c in a float32 copy of it. Aliasing: none. Throws: Error on a shape or dtype mismatch.
void matmul(ConstTensorView a, ConstTensorView b, TensorView c, Write write, const Stream& stream);

/// c = a b + addend, as matmul() but for the rounding of a bfloat16 c, which on CUDA may be that of
/// the product first and then that of the sum.
/// Shapes: as there; addend[m,n] of c's dtype, its last dim with stride 1.
void matmul_add(ConstTensorView a, ConstTensorView b, ConstTensorView addend, TensorView c,
                const Stream& stream);

/// Most memory that a product of at most so many multiplications (m n k) takes for a while on a CPU
/// stream of so many threads, where a, b and c are `dtype`. Small products count nothing.
std::int64_t cpu_matmul_scratch_bytes(DType dtype, int threads, std::int64_t multiplications);

/// What a small product takes at most, a thread.
constexpr std::int64_t kSmallMatmulScratchBytes = std::int64_t{256} << 10;

/// The same on a CUDA stream, for operands of one dtype into c of it or of float32: cuBLASLt's
/// workspace.
constexpr std::int64_t kCudaMatmulScratchBytes = std::int64_t{32} << 20;

}  // namespace longhaul::runtime::ops

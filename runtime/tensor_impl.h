#pragma once
// Private to runtime/: host copies without a stream, and the CUDA side of copy(), accumulate(),
// fill() and their like for lists of rows.

#include "runtime/rows.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::detail {

// copy() and accumulate() of host memory on the calling thread, for code that already runs on a
// stream's thread.
void copy_now(ConstTensorView src, TensorView dst);
void accumulate_now(ConstTensorView src, TensorView dst);

// Provided by tensor_cuda.cpp, or by tensor_no_cuda.cpp in a CPU build.
void cuda_copy(ConstTensorView src, TensorView dst, const Stream& stream);
// Provided by tensor_kernels_cuda.cu, or by tensor_kernels_no_cuda.cpp.
void cuda_copy_on_device(ConstTensorView src, TensorView dst, const Stream& stream);
void cuda_accumulate(ConstTensorView src, TensorView dst, const Stream& stream);
void cuda_fill(TensorView dst, double value, const Stream& stream);
void cuda_copy_rows(ConstTensorView src, TensorView dst, const RowList& rows, const Stream& stream);
void cuda_accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                          const Stream& stream);

}  // namespace longhaul::runtime::detail

#pragma once
// What copies, sums and fills of views of any strides owe on a CUDA stream, against loops over
// single elements in double. The same body runs on a device, and on the host over the kernels'
// source.

#include "runtime/rows.h"
#include "runtime/tensor.h"

namespace longhaul::test {

struct TensorOperations {
  void (*copy)(runtime::ConstTensorView, runtime::TensorView, const runtime::Stream&);
  void (*accumulate)(runtime::ConstTensorView, runtime::TensorView, const runtime::Stream&);
  void (*fill)(runtime::TensorView, double, const runtime::Stream&);
  void (*copy_rows)(runtime::ConstTensorView, runtime::TensorView, const runtime::RowList&,
                    const runtime::Stream&);
  void (*accumulate_rows)(runtime::ConstTensorView, runtime::TensorView, const runtime::RowList&,
                          const runtime::Stream&);
};

/// Reports by gtest's expectations.
void expect_tensor_contract(const TensorOperations& operations, const runtime::Stream& stream);

}  // namespace longhaul::test

#include "models/branch.h"

#include <utility>

#include "runtime/ops/matmul.h"
#include "runtime/ops/scaled.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

Branch::Branch(const BranchShape& shape, std::string norm, int group,
               parallel::ParameterTable& table)
    : shape_(shape), norm_(std::move(norm)), group_(group) {
  using enum parallel::Initialisation;
  const auto start = shape_.norm_offset == 0 ? ones : zeros;
  table.add({norm_, {shape_.hidden}, start, 0, false, -1, group, {}});
}

ops::NormWeight Branch::weight(const Weights& weights) const {
  return {weights.value(norm_).value, shape_.norm_offset};
}

Tensor Branch::normed(const Resources& resources, ConstTensorView input, Tensor& inv_rms) const {
  const runtime::Stream& compute = resources.compute;
  const Weights weights(resources.store, group_);
  Tensor rows({input.size(0), shape_.hidden}, shape_.dtype, compute);
  inv_rms = Tensor({input.size(0)}, DType::float32, compute);
  ops::rms_norm(input, weight(weights), shape_.norm_eps, rows, inv_rms, compute);
  return rows;
}

Tensor Branch::normed_again(const Resources& resources, ConstTensorView input,
                            ConstTensorView inv_rms) const {
  const Weights weights(resources.store, group_);
  Tensor rows({input.size(0), shape_.hidden}, shape_.dtype, resources.compute);
  ops::rms_norm_apply(input, weight(weights), inv_rms, rows, resources.compute);
  return rows;
}

Tensor Branch::output(const Resources& resources, ConstTensorView input, ConstTensorView inv_rms,
                      ConstTensorView inner, const Weight& projection) const {
  const runtime::Stream& compute = resources.compute;
  const auto& [alpha, beta, of_norm] = shape_.residual;
  const Tensor rows = of_norm ? normed_again(resources, input, inv_rms) : Tensor();
  const ConstTensorView base = of_norm ? ConstTensorView(rows) : input;
  const ConstTensorView matrix = ops::transposed(projection.value);
  Tensor out({input.size(0), shape_.hidden}, shape_.dtype, compute);
  if (alpha == 1 && beta == 1) {
    ops::matmul_add(inner, matrix, base, out, compute);
    return out;
  }
  ops::matmul(inner, matrix, out, Write::overwrite, compute);
  if (beta != 1) ops::scaled(out, beta, Write::overwrite, out, compute);
  ops::scaled(base, alpha, Write::add, out, compute);
  return out;
}

ConstTensorView Branch::gradient(const Resources& resources, ConstTensorView dx,
                                 Tensor& own) const {
  if (shape_.residual.beta == 1) return dx;
  own = Tensor(dx.sizes(), shape_.dtype, resources.compute);
  ops::scaled(dx, shape_.residual.beta, Write::overwrite, own, resources.compute);
  return own;
}

void Branch::backward(const Resources& resources, ConstTensorView input, ConstTensorView inv_rms,
                      const Tensor& dnormed, TensorView dx) const {
  const runtime::Stream& compute = resources.compute;
  const Weights weights(resources.store, group_);
  const auto& [alpha, beta, of_norm] = shape_.residual;
  if (of_norm) {
    ops::scaled(dx, alpha, Write::add, dnormed, compute);
  } else if (alpha != 1) {
    ops::scaled(dx, alpha, Write::overwrite, dx, compute);
  }
  ops::rms_norm_backward({input, weight(weights), inv_rms, dnormed}, dx,
                         of_norm ? Write::overwrite : Write::add,
                         weights.value(norm_).gradient(compute), compute);
}

std::int64_t Branch::kept_bytes(std::int64_t rows) const {
  return rows * (shape_.hidden * size_bytes(shape_.dtype) + size_bytes(DType::float32));
}

std::int64_t Branch::output_bytes(std::int64_t rows) const {
  return rows * shape_.hidden * size_bytes(shape_.dtype) * (shape_.residual.of_norm ? 2 : 1);
}

std::int64_t Branch::backward_bytes(std::int64_t rows) const {
  return rows * shape_.hidden * (size_bytes(shape_.dtype) + size_bytes(DType::float32));
}

std::int64_t Branch::gradient_bytes(std::int64_t rows) const {
  return shape_.residual.beta == 1 ? 0 : rows * shape_.hidden * size_bytes(shape_.dtype);
}

}  // namespace longhaul::models

#include "models/branch.h"

#include <algorithm>
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

Branch::Branch(const BranchShape& shape, std::string norm, std::string norm_after, int group,
               parallel::ParameterTable& table)
    : shape_(shape), norm_(std::move(norm)), norm_after_(std::move(norm_after)), group_(group) {
  using enum parallel::Initialisation;
  if (shape.residual.of_norm && !norms_before()) {
    fail(runtime::ExitCode::config,
         "a residual of the normalised rows needs a norm before the branch; it has one behind it "
         "only");
  }
  LONGHAUL_CHECK(norms_before() != norm_.empty() && norms_after() != norm_after_.empty(),
                 "norms of a branch are called '", norm_, "' and '", norm_after_,
                 "'; expected a name for each that it has");
  const auto start = shape_.norm_offset == 0 ? ones : zeros;
  for (const std::string& name : {norm_, norm_after_}) {
    if (!name.empty()) table.add({name, {shape_.hidden}, start, 0, false, -1, group, {}});
  }
}

ops::NormWeight Branch::weight(const Weights& weights, const std::string& norm) const {
  return {weights.value(norm).value, shape_.norm_offset};
}

Tensor Branch::rows_like(ConstTensorView rows, const runtime::Stream& compute) const {
  return {{rows.size(0), shape_.hidden}, shape_.dtype, compute};
}

ConstTensorView Branch::normed(const Resources& resources, ConstTensorView input, BranchKept& kept,
                               Tensor& own) const {
  if (!norms_before()) return input;
  const runtime::Stream& compute = resources.compute;
  const Weights weights(resources.store, group_);
  own = rows_like(input, compute);
  kept.inv_rms = Tensor({input.size(0)}, DType::float32, compute);
  ops::rms_norm(input, weight(weights, norm_), shape_.norm_eps, own, kept.inv_rms, compute);
  return own;
}

ConstTensorView Branch::normed_again(const Resources& resources, ConstTensorView input,
                                     const BranchKept& kept, Tensor& own) const {
  if (!norms_before()) return input;
  const Weights weights(resources.store, group_);
  own = rows_like(input, resources.compute);
  ops::rms_norm_apply(input, weight(weights, norm_), kept.inv_rms, own, resources.compute);
  return own;
}

void Branch::project(const Resources& resources, ConstTensorView projected,
                     const Projection& projection, BranchKept& kept) const {
  const runtime::Stream& compute = resources.compute;
  kept.inner = rows_like(projected, compute);
  kept.inner_inv_rms = Tensor({projected.size(0)}, DType::float32, compute);
  projection.apply(projected, kept.inner, compute);
  ops::inverse_rms(kept.inner, shape_.norm_eps, kept.inner_inv_rms, compute);
}

void Branch::join(const Resources& resources, ConstTensorView base, const Tensor& out) const {
  const auto& [alpha, beta, of_norm] = shape_.residual;
  if (beta != 1) ops::scaled(out, beta, Write::overwrite, out, resources.compute);
  ops::scaled(base, alpha, Write::add, out, resources.compute);
}

Tensor Branch::output(const Resources& resources, ConstTensorView input,
                      const BranchKept& kept) const {
  const Weights weights(resources.store, group_);
  Tensor normed;
  const ConstTensorView base =
      shape_.residual.of_norm ? normed_again(resources, input, kept, normed) : input;
  Tensor out = rows_like(input, resources.compute);
  ops::rms_norm_apply(kept.inner, weight(weights, norm_after_), kept.inner_inv_rms, out,
                      resources.compute);
  join(resources, base, out);
  return out;
}

Tensor Branch::output(const Resources& resources, ConstTensorView input, const BranchKept& kept,
                      ConstTensorView projected, const Projection& projection) const {
  const runtime::Stream& compute = resources.compute;
  const auto& [alpha, beta, of_norm] = shape_.residual;
  Tensor normed;
  const ConstTensorView base = of_norm ? normed_again(resources, input, kept, normed) : input;
  Tensor out = rows_like(input, compute);
  if (alpha == 1 && beta == 1 && !projection.bias) {
    ops::matmul_add(projected, ops::transposed(projection.weight.value), base, out, compute);
    return out;
  }
  projection.apply(projected, out, compute);
  join(resources, base, out);
  return out;
}

ConstTensorView Branch::gradient(const Resources& resources, ConstTensorView dx, BranchKept& kept,
                                 Tensor& own) const {
  const runtime::Stream& compute = resources.compute;
  const double beta = shape_.residual.beta;
  if (!norms_after()) {
    if (beta == 1) return dx;
    own = rows_like(dx, compute);
    ops::scaled(dx, beta, Write::overwrite, own, compute);
    return own;
  }
  const Weights weights(resources.store, group_);
  Tensor wide;
  ConstTensorView dnormed = dx;
  if (beta != 1 || shape_.dtype != DType::float32) {
    wide = Tensor(dx.sizes(), DType::float32, compute);
    ops::scaled(dx, beta, Write::overwrite, wide, compute);
    dnormed = wide;
  }
  own = rows_like(dx, compute);
  ops::rms_norm_backward({kept.inner, weight(weights, norm_after_), kept.inner_inv_rms, dnormed},
                         own, Write::overwrite, weights.value(norm_after_).gradient(compute),
                         compute);
  kept.inner = Tensor();
  kept.inner_inv_rms = Tensor();
  return own;
}

void Branch::backward(const Resources& resources, ConstTensorView input, const BranchKept& kept,
                      const Tensor& dnormed, TensorView dx) const {
  const runtime::Stream& compute = resources.compute;
  const auto& [alpha, beta, of_norm] = shape_.residual;
  if (of_norm) {
    ops::scaled(dx, alpha, Write::add, dnormed, compute);
  } else if (alpha != 1) {
    ops::scaled(dx, alpha, Write::overwrite, dx, compute);
  }
  if (!norms_before()) return ops::scaled(dnormed, 1, Write::add, dx, compute);
  const Weights weights(resources.store, group_);
  ops::rms_norm_backward({input, weight(weights, norm_), kept.inv_rms, dnormed}, dx,
                         of_norm ? Write::overwrite : Write::add,
                         weights.value(norm_).gradient(compute), compute);
}

std::int64_t Branch::kept_bytes(std::int64_t rows) const {
  return rows * (shape_.hidden * size_bytes(shape_.dtype) +
                 (norms_before() ? size_bytes(DType::float32) : 0)) +
         released_bytes(rows);
}

std::int64_t Branch::released_bytes(std::int64_t rows) const {
  if (!norms_after()) return 0;
  return rows * (shape_.hidden * size_bytes(shape_.dtype) + size_bytes(DType::float32));
}

std::int64_t Branch::output_bytes(std::int64_t rows, std::int64_t projected) const {
  const std::int64_t output =
      rows * shape_.hidden * size_bytes(shape_.dtype) * (shape_.residual.of_norm ? 2 : 1);
  return norms_after() ? std::max(projected, output) : projected + output;
}

std::int64_t Branch::gradient_bytes(std::int64_t rows) const {
  const bool wide = norms_after() && (shape_.residual.beta != 1 || shape_.dtype != DType::float32);
  return own_bytes(rows) + (wide ? rows * shape_.hidden * size_bytes(DType::float32) : 0);
}

std::int64_t Branch::own_bytes(std::int64_t rows) const {
  if (!norms_after() && shape_.residual.beta == 1) return 0;
  return rows * shape_.hidden * size_bytes(shape_.dtype);
}

std::int64_t Branch::backward_bytes(std::int64_t rows) const {
  return rows * shape_.hidden *
         ((norms_before() ? size_bytes(shape_.dtype) : 0) + size_bytes(DType::float32));
}

}  // namespace longhaul::models

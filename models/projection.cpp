#include "models/projection.h"

#include <string_view>
#include <utility>

#include "runtime/error.h"
#include "runtime/ops/bias.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

namespace ops = runtime::ops;

namespace {

std::string bias_of(const std::string& matrix) {
  constexpr std::string_view kWeight = ".weight";
  LONGHAUL_CHECK(matrix.ends_with(kWeight), "matrix '", matrix,
                 "' has no bias by name; expected one that ends in .weight");
  return matrix.substr(0, matrix.size() - kWeight.size()) + ".bias";
}

}  // namespace

ProjectionNames add_projection(const ProjectionShape& shape,
                               std::span<const ProjectionMatrix> matrices,
                               parallel::ParameterTable& table) {
  using enum parallel::Initialisation;
  ProjectionNames names{matrices.front().name, matrices.back().name, {}, {}};
  for (const auto& [name, out] : matrices)
    table.add({name, {out, shape.in}, normal, shape.stddev, true, shape.tensor_dim, shape.group});
  if (!shape.bias) return names;
  const int dim = shape.tensor_dim == 0 ? 0 : -1;  // it is as long as the matrix has rows
  for (const auto& [name, out] : matrices)
    table.add({bias_of(name), {out}, zeros, 0, false, dim, shape.group});
  names.first_bias = bias_of(names.first);
  names.last_bias = bias_of(names.last);
  return names;
}

Projection::Projection(Weight matrix, std::optional<Weight> vector)
    : weight(std::move(matrix)), bias(std::move(vector)) {}

Projection::Projection(const Weights& weights, const ProjectionNames& names)
    : weight(weights.working(names.first, names.last)),
      bias(names.first_bias.empty()
               ? std::nullopt
               : std::optional(weights.vector(names.first_bias, names.last_bias))) {}

void Projection::apply(runtime::ConstTensorView x, runtime::TensorView y,
                       const runtime::Stream& stream) const {
  ops::matmul(x, ops::transposed(weight.value), y, ops::Write::overwrite, stream);
  if (bias) ops::add_bias(bias->value, y, stream);
}

void Projection::add_gradients(runtime::ConstTensorView dy, runtime::ConstTensorView x,
                               const runtime::Stream& stream) const {
  weight.add_product(ops::transposed(dy), x, stream);
  if (bias) ops::bias_backward(dy, bias->gradient(stream), stream);
}

}  // namespace longhaul::models

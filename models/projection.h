#pragma once
// Matrices that multiply rows, with their biases.

#include <optional>
#include <span>
#include <string>

#include "models/weights.h"
#include "parallel/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// Of the parameters of a projection: its matrices from `first` to `last`, neighbours in the table
/// and one matrix, and their biases; empty: it has none.
struct ProjectionNames {
  std::string first, last, first_bias, last_bias;
};

/// What the matrices of a projection are made of.
struct ProjectionShape {
  std::int64_t in = 0;
  bool bias = false;  ///< "x.bias" [out] of the matrix "x.weight", zeros at first, not decayed
  double stddev = 0;  ///< of the initial matrices
  int tensor_dim = -1;
  int group = 0;
};
struct ProjectionMatrix {
  std::string name;
  std::int64_t out = 0;
};
/// Adds them to the table, [out, in] each, then their biases.
ProjectionNames add_projection(const ProjectionShape& shape,
                               std::span<const ProjectionMatrix> matrices,
                               parallel::ParameterTable& table);

/// y = x weight^T + bias, fetched for use. x[n,in], y[n,out], of the activation dtype.
struct Projection {
  Projection(Weight matrix, std::optional<Weight> vector = {});
  Projection(const Weights& weights, const ProjectionNames& names);

  void apply(runtime::ConstTensorView x, runtime::TensorView y,
             const runtime::Stream& stream) const;
  /// Adds to the gradients, from dy and x.
  void add_gradients(runtime::ConstTensorView dy, runtime::ConstTensorView x,
                     const runtime::Stream& stream) const;

  const Weight weight;               ///< [out, in]
  const std::optional<Weight> bias;  ///< [out] fp32
};

}  // namespace longhaul::models

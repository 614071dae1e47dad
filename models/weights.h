#pragma once
// Weights are fetched by group where they are used.

#include <string>

#include "models/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// A parameter as an op reads it, and its fp32 gradient, to which ops add.
struct Weight {
  runtime::ConstTensorView value;
  runtime::TensorView gradient;
};

/// The parameters of a group, at hand while this lives. What is enqueued meanwhile may use them.
/// Borrows the store.
class Weights {
 public:
  Weights(const ParameterStore& store, int group) : store_(store), group_(group) {}
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  /// In fp32: norms and embeddings. Throws when it is of another group.
  Weight value(const std::string& name) const;
  /// In the activation dtype: what matmuls read.
  Weight working(const std::string& name) const;
  /// Neighbours in the table as one matrix, the rows of `first` to those of `last`: what one matmul
  /// reads in the place of several. Throws unless they have as many columns.
  Weight working(const std::string& first, const std::string& last) const;

 private:
  void check(const std::string& name) const;

  const ParameterStore& store_;
  const int group_;
};

}  // namespace longhaul::models

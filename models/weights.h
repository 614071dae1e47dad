#pragma once
// Weights are fetched by group where they are used.

#include <string>

#include "models/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// A parameter as an op reads it, and the way to its fp32 gradient. Borrows the store.
class Weight {
 public:
  /// `range`: what it is of the store.
  Weight(runtime::ConstTensorView as_read, ParameterStore& store, parallel::ElementRange range)
      : value(as_read), store_(store), range_(range) {}

  const runtime::ConstTensorView value;

  /// Adds the product a b to the gradient [m,n]: a[m,k], b[k,n] as matmul() takes them. The first
  /// of a step is written over what the gradient held.
  void add_product(runtime::ConstTensorView a, runtime::ConstTensorView b,
                   const runtime::Stream& stream) const;
  /// The gradient, for an op that adds to it: the first of a step finds zeros.
  [[nodiscard]] runtime::TensorView gradient(const runtime::Stream& stream) const;

 private:
  /// In the sizes of the value.
  runtime::TensorView gradient() const;

  ParameterStore& store_;
  const parallel::ElementRange range_;
};

/// The parameters of a group, at hand while this lives. What is enqueued meanwhile may use them.
/// Borrows the store.
class Weights {
 public:
  Weights(ParameterStore& store, int group) : store_(store), group_(group) {}
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  /// In fp32: norms, embeddings, gates, convolutions. Throws when it is of another group.
  Weight value(const std::string& name) const;
  /// Neighbours in the table as one matrix, as working() below.
  Weight value(const std::string& first, const std::string& last) const;
  /// In the activation dtype: what matmuls read.
  Weight working(const std::string& name) const;
  /// Neighbours in the table as one matrix, the rows of `first` to those of `last`: what one matmul
  /// reads in the place of several. A row is what one step of the first dim is. Throws unless they
  /// have as many columns.
  Weight working(const std::string& first, const std::string& last) const;
  /// Neighbours in the table of one dim each as one vector, in fp32.
  Weight vector(const std::string& first, const std::string& last) const;

 private:
  /// Where it lies in the store; throws when it is of another group.
  parallel::ElementRange range_of(const std::string& name) const;
  /// `values`, flat in table order, of `first` to `last` as one matrix.
  Weight matrix(runtime::ConstTensorView values, const std::string& first,
                const std::string& last) const;

  ParameterStore& store_;
  const int group_;
};

}  // namespace longhaul::models

#pragma once
// The parameter table, from which sizes, names, initialisation, sharding seats and checkpoints
// derive, and the store that holds what it lists.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::models {

enum class Initialisation : unsigned char { normal, ones };

/// A half-open range of elements of the flat storage.
struct ElementRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t elements() const { return end - begin; }
  bool operator==(const ElementRange&) const = default;
};

struct Parameter {
  std::string name;  ///< Hugging Face's, e.g. "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> sizes;  ///< [out, in] of a projection
  Initialisation initialisation = Initialisation::normal;
  double stddev = 0;  ///< of a normal initialisation
  bool weight_decay = false;
  int tensor_dim = -1;  ///< the dim that tensor parallelism would split; -1: replicated
  int group = 0;        ///< parameters whose gradients are complete together
  ElementRange range;   ///< where it lies in the flat storage
};

/// An ordered list of parameters. Groups are added in order, so each is one contiguous range: its
/// gradients travel as one message.
class ParameterTable {
 public:
  /// Appends a parameter (its range is set here). Throws on a repeated name or a group out of
  /// order.
  void add(Parameter parameter);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t elements() const { return elements_; }
  int groups() const { return parameters_.empty() ? 0 : parameters_.back().group + 1; }
  ElementRange group_range(int group) const;
  /// Throws Error(data) for an unknown name.
  const Parameter& find(const std::string& name) const;

 private:
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, std::size_t> index_;
  std::int64_t elements_ = 0;
};

/// A global tensor by name, as checkpoints hold it: "NAME", "optimizer.exp_avg.NAME",
/// "optimizer.exp_avg_sq.NAME".
struct NamedTensor {
  std::string name;
  runtime::TensorView view;  ///< fp32
};

/// Owns values, gradients and AdamW's moments (fp32, flat, in table order) and, when the
/// activations are bfloat16, a bfloat16 copy of the values that the matmuls read. Everything lives
/// on the compute stream.
class ParameterStore {
 public:
  /// `working_dtype` is the dtype of the activations. Memory: 16 bytes a parameter, 18 with
  /// bfloat16. Moments and gradients are zero, values uninitialised until initialise() or a
  /// checkpoint fills them.
  ParameterStore(ParameterTable table, runtime::DType working_dtype,
                 const runtime::Stream& compute);

  const ParameterTable& table() const { return table_; }
  runtime::DType working_dtype() const { return working_dtype_; }

  /// Draws every value from (seed, the parameter's name, element): independent of ranks and of
  /// table order.
  void initialise(std::uint64_t seed, const runtime::Stream& stream);

  runtime::TensorView values() const { return values_.view(); }
  runtime::TensorView gradients() const { return gradients_.view(); }
  runtime::TensorView first_moments() const { return first_moments_.view(); }
  runtime::TensorView second_moments() const { return second_moments_.view(); }

  runtime::TensorView value(const std::string& name) const;
  runtime::TensorView gradient(const std::string& name) const;
  /// What a matmul reads: the value, or its bfloat16 copy as of the last refresh.
  runtime::ConstTensorView working(const std::string& name) const;

  /// Call after writing values other than through initialise() or the optimizer (a loaded
  /// checkpoint).
  void values_changed() { stale_ = true; }
  /// Casts the working copy when values have changed since; the model does this once a pass.
  void refresh_working_copy(const runtime::Stream& stream);

  void zero_gradients(const runtime::Stream& stream);

  /// Everything a checkpoint holds of the model: values, then first, then second moments.
  std::vector<NamedTensor> named_tensors() const;

 private:
  ParameterTable table_;
  runtime::DType working_dtype_;
  runtime::Tensor values_, gradients_, first_moments_, second_moments_;
  runtime::Tensor working_;  // empty when the activations are float32
  bool stale_ = true;
};

}  // namespace longhaul::models

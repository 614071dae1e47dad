#pragma once
// The store of what a parameter table lists: values and gradients.

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/sharding.h"
#include "runtime/ops/write.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// The part of a flat tensor in table order that is one parameter, in its sizes.
runtime::TensorView view_of(const runtime::TensorView& flat, const parallel::Parameter& parameter);

/// Whether a store has them: a model that only evaluates reads none.
enum class Gradients : unsigned char { held, none };

/// Owns values and gradients (fp32, flat, in table order) and, when the activations are bfloat16, a
/// bfloat16 copy of the values that the matmuls read. Everything lives on the compute stream.
///
/// A step does not clear its gradients: the first operation that writes one overwrites it, later
/// ones add. The store knows which of them is enqueued next, parameter by parameter; operations are
/// enqueued by one thread, on the compute stream.
class ParameterStore {
 public:
  /// `working_dtype` is the dtype of the activations. Memory: 4 bytes a parameter, 2 more with
  /// bfloat16, 4 more with gradients. Gradients are zero and none is written yet, values
  /// uninitialised until initialise() or a checkpoint fills them.
  ParameterStore(parallel::ParameterTable table, runtime::DType working_dtype,
                 const runtime::Stream& compute, Gradients gradients = Gradients::held);

  const parallel::ParameterTable& table() const { return table_; }
  runtime::DType working_dtype() const { return working_dtype_; }

  /// Draws every value from (seed, the parameter's name, element): independent of ranks and of
  /// table order.
  void initialise(std::uint64_t seed, const runtime::Stream& stream);

  runtime::TensorView values() const { return values_.view(); }
  runtime::TensorView gradients() const { return gradients_.view(); }
  /// What matmuls read: the values, or their bfloat16 copy as of the last refresh.
  runtime::ConstTensorView working() const;

  runtime::TensorView value(const std::string& name) const;
  runtime::TensorView gradient(const std::string& name) const;
  runtime::ConstTensorView working(const std::string& name) const;

  /// Call after writing values without the working copy, as a checkpoint's arrive.
  void values_changed() { stale_ = true; }
  /// Casts the working copy when values have changed since; the model does this once a pass.
  void refresh_working_copy(const runtime::Stream& stream);
  /// bfloat16, flat, in table order; without data when the activations are float32. Whoever writes
  /// values may keep it current instead of calling values_changed().
  runtime::TensorView working_copy() const { return working_.view(); }

  /// Begins a step: no gradient is written yet, and until it is, it holds the last step's.
  void drop_gradients();
  /// How the operation that is enqueued now writes the gradients of `range`, which is of whole
  /// parameters: it overwrites when none of them is written since drop_gradients(). Else it adds,
  /// and those that are not become zeros before it.
  [[nodiscard]] runtime::ops::Write next_write(parallel::ElementRange range,
                                               const runtime::Stream& stream);
  /// The gradients of `range` that are not written since drop_gradients() become zeros.
  void zero_unwritten(parallel::ElementRange range, const runtime::Stream& stream);

  /// What a checkpoint holds of the model: every value under its parameter's name.
  parallel::FlatState state() const { return {"", values_, {{0, table_.elements()}}}; }

 private:
  parallel::ParameterTable table_;
  runtime::DType working_dtype_;
  runtime::Tensor values_, gradients_;
  runtime::Tensor working_;  // empty when the activations are float32
  bool stale_ = true;
  std::vector<bool> written_;  // whether each parameter's gradient is, in this step
};

}  // namespace longhaul::models

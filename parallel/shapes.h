#pragma once
// What all ranks of an attention call share, whatever its masks and layout.

#include <cstdint>
#include <optional>
#include <string>

#include "attention/block.h"
#include "attention/linear.h"
#include "runtime/dtype.h"

namespace longhaul::parallel {

/// What makes a call one of a recurrence (attention/linear.h) instead of softmax attention.
struct LinearCall {
  attention::Recurrence recurrence;
  /// A state is given that each sequence continues: its first document does not start from zero.
  bool initial_state = false;
  bool final_state = false;  ///< each sequence's last state is wanted, and its gradient is given
  /// Backward: the gradient of constant decays (Decay::head) is wanted.
  bool slopes_gradient = false;
  /// Forward: the states that enter the runs are those of an earlier call over the same rows, so
  /// nothing is exchanged.
  bool states_given = false;
  bool operator==(const LinearCall&) const = default;
};

/// Sizes. Of a linear call: `heads` value heads, which are the states', `kv_heads` heads of q and
/// k.
struct Shapes {
  int heads = 0, kv_heads = 0;
  std::int64_t dim = 0, value_dim = 0;
  runtime::DType activation = runtime::DType::float32;
  attention::Weighting weighting = attention::Weighting::softmax;
  std::optional<LinearCall> linear = {};
  bool operator==(const Shapes&) const = default;
};
/// One word of all of it, equal where they are.
std::string key(const Shapes& shapes);

}  // namespace longhaul::parallel

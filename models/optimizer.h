#pragma once
// AdamW over the parameter table, the gradient norm, clipping, and the learning-rate schedule.

#include <cstdint>
#include <vector>

#include "models/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::models {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< of parameters marked in the table: matrices but the embedding
  double max_norm = 1;  ///< of the global gradient; larger ones are scaled down to it; 0: never
};

/// Owns the moments (fp32, flat, in table order; 8 bytes a parameter), which are zero at first, and
/// borrows the store. Gradients are complete (all micro-batches, all ranks) when it runs.
class AdamW {
 public:
  AdamW(const AdamWOptions& options, ParameterStore& store, const runtime::Stream& compute);

  /// Euclidean norm of all gradients, float64[1]: double sums in a fixed order.
  [[nodiscard]] runtime::Tensor gradient_norm(const runtime::Stream& stream) const;

  /// Clips by `norm` (gradient_norm's) and updates every parameter. `step` counts from 1.
  /// Throws (through the stream, before anything is updated): Error(internal) when the norm is not
  /// finite.
  void step(double lr, std::int64_t step, runtime::ConstTensorView norm,
            const runtime::Stream& stream);

  /// Its state as checkpoints hold it: "optimizer.exp_avg.NAME", then "optimizer.exp_avg_sq.NAME".
  std::vector<NamedTensor> named_tensors() const;

 private:
  /// Neighbouring parameters with the same decay, updated together.
  struct Stretch {
    parallel::ElementRange range;
    bool weight_decay = false;
  };

  const AdamWOptions options_;
  ParameterStore& store_;
  const runtime::Tensor first_moments_, second_moments_;
  std::vector<Stretch> stretches_;
};

struct LearningRateSchedule {
  double lr = 3e-4;
  std::int64_t warmup_steps = 0;
  std::int64_t steps = 1;      ///< of the whole run
  double min_lr_factor = 0.1;  ///< of lr, reached at the last step
};

/// The rate of step 1, 2, ...: linear to lr at step `warmup_steps`, then half a cosine down to
/// lr * min_lr_factor at step `steps`, and constant after. Source: Loshchilov and Hutter 2017
/// (SGDR).
double learning_rate(const LearningRateSchedule& schedule, std::int64_t step);

}  // namespace longhaul::models

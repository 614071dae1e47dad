#pragma once
// AdamW over the parameter table, or the part of it that a rank updates, with clipping, and the
// learning-rate schedule.

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

/// Owns the moments of what it updates (fp32, in table order; kStateBytes a parameter), which are
/// zero at first, and borrows the store. Gradients are complete (all micro-batches, all ranks) when
/// it runs.
class AdamW {
 public:
  static constexpr std::int64_t kStateBytes = 8;

  /// `updated`: the ranges of the store that it updates, ascending and disjoint.
  AdamW(const AdamWOptions& options, ParameterStore& store,
        std::vector<parallel::ElementRange> updated, const runtime::Stream& compute);

  /// Clips by `norm`, float64[1] of all gradients, updates its ranges and counts the update. When
  /// these are all of the store, its working copy follows; else the values that other ranks have
  /// updated come later, and the store is told that values change.
  /// Throws (through the stream, before anything is updated): Error(internal) naming the run's
  /// `step` when the norm is not finite.
  void step(double lr, std::int64_t step, runtime::ConstTensorView norm,
            const runtime::Stream& stream);

  /// Updates made so far, which correct the moments' bias: a step of the run that had nothing to
  /// learn from made none. A checkpoint keeps it beside states().
  std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates) { updates_ = updates; }

  /// What a checkpoint holds of it: "optimizer.exp_avg.NAME" and "optimizer.exp_avg_sq.NAME".
  std::vector<parallel::FlatState> states() const;

 private:
  /// Neighbouring parameters with the same decay, updated together.
  struct Stretch {
    parallel::ElementRange range;
    std::int64_t moments = 0;  ///< where theirs begin
    bool weight_decay = false;
  };

  const AdamWOptions options_;
  ParameterStore& store_;
  const std::vector<parallel::ElementRange> updated_;
  const runtime::Tensor first_moments_, second_moments_;
  const bool updates_all_;  ///< of the store
  std::vector<Stretch> stretches_;
  std::int64_t updates_ = 0;
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

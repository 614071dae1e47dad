#include "models/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "runtime/ops/adamw.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/purpose.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

std::int64_t elements_of(const std::vector<parallel::ElementRange>& ranges) {
  std::int64_t elements = 0;
  for (const parallel::ElementRange& range : ranges) elements += range.elements();
  return elements;
}

Tensor moments(const std::vector<parallel::ElementRange>& updated, const Stream& compute) {
  const runtime::Purpose purpose("the optimizer's moments",
                                 "shard them over the ranks, or take a smaller model");
  return {{elements_of(updated)}, DType::float32, compute};
}

}  // namespace

AdamW::AdamW(const AdamWOptions& options, ParameterStore& store,
             std::vector<parallel::ElementRange> updated, const Stream& compute)
    : options_(options),
      store_(store),
      updated_(std::move(updated)),
      first_moments_(moments(updated_, compute)),
      second_moments_(moments(updated_, compute)),
      updates_all_(elements_of(updated_) == store.table().elements()) {
  fill(first_moments_, 0, compute);
  fill(second_moments_, 0, compute);
  std::int64_t moments = 0;
  for (const parallel::ElementRange& range : updated_) {
    for (const parallel::Parameter& parameter : store.table().parameters()) {
      const parallel::ElementRange part = common(range, parameter.range);
      if (part.elements() == 0) continue;
      if (!stretches_.empty() && stretches_.back().range.end == part.begin &&
          stretches_.back().weight_decay == parameter.weight_decay) {
        stretches_.back().range.end = part.end;
      } else {
        stretches_.push_back({part, moments, parameter.weight_decay});
      }
      moments += part.elements();
    }
  }
}

void AdamW::step(double lr, std::int64_t step, ConstTensorView norm, const Stream& stream) {
  const Tensor factor({1}, DType::float64, stream);
  ops::clip_factor(norm, options_.max_norm, step, factor, stream);
  ++updates_;
  const runtime::TensorView copy = updates_all_ ? store_.working_copy() : runtime::TensorView();
  for (const Stretch& stretch : stretches_) {
    const auto from = [elements = stretch.range.elements()](const runtime::TensorView& flat,
                                                            std::int64_t begin) {
      return flat.slice(0, begin, begin + elements);
    };
    ops::AdamWState state{from(store_.values(), stretch.range.begin),
                          from(first_moments_, stretch.moments),
                          from(second_moments_, stretch.moments)};
    if (copy.data() != nullptr) state.rounded = from(copy, stretch.range.begin);
    ops::adamw({lr, options_.beta1, options_.beta2, options_.eps,
                stretch.weight_decay ? options_.weight_decay : 0, updates_},
               from(store_.gradients(), stretch.range.begin), factor, state, stream);
  }
  if (!updates_all_) store_.values_changed();
}

std::vector<parallel::FlatState> AdamW::states() const {
  return {{"optimizer.exp_avg.", first_moments_, updated_},
          {"optimizer.exp_avg_sq.", second_moments_, updated_}};
}

double learning_rate(const LearningRateSchedule& schedule, std::int64_t step) {
  LONGHAUL_CHECK(step >= 1, "learning_rate of step ", step, "; steps count from 1");
  if (step <= schedule.warmup_steps) {
    return schedule.lr * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  }
  const std::int64_t decay_steps =
      std::max<std::int64_t>(1, schedule.steps - schedule.warmup_steps);
  const double progress = std::min(
      1.0, static_cast<double>(step - schedule.warmup_steps) / static_cast<double>(decay_steps));
  const double lowest = schedule.lr * schedule.min_lr_factor;
  return lowest + (schedule.lr - lowest) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace longhaul::models

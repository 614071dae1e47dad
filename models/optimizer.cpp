#include "models/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/ops/adamw.h"
#include "runtime/ops/sum_of_squares.h"

namespace longhaul::models {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::Stream;
using runtime::Tensor;

AdamW::AdamW(const AdamWOptions& options, ParameterStore& store)
    : options_(options), store_(store) {
  for (const Parameter& parameter : store.table().parameters()) {
    if (!runs_.empty() && runs_.back().weight_decay == parameter.weight_decay) {
      runs_.back().range.end = parameter.range.end;
    } else {
      runs_.push_back({parameter.range, parameter.weight_decay});
    }
  }
}

Tensor AdamW::gradient_norm(const Stream& stream) const {
  Tensor norm({1}, DType::float64, stream);
  runtime::ops::sum_of_squares(store_.gradients(), norm, stream);
  stream.enqueue([value = norm.as<double>()] { *value = std::sqrt(*value); });
  return norm;
}

void AdamW::step(double lr, std::int64_t step, ConstTensorView norm, const Stream& stream) {
  const Tensor factor({1}, DType::float64, stream);
  stream.enqueue(
      [norm = norm.as<double>(), factor = factor.as<double>(), max_norm = options_.max_norm, step] {
        if (!std::isfinite(*norm)) {
          runtime::fail(
              ExitCode::internal, "the gradient norm of step ", step, " is ", *norm,
              "; nothing was updated. Lower the learning rate or max_norm, or look for bad data");
        }
        *factor = max_norm > 0 && *norm > max_norm ? max_norm / *norm : 1.0;
      });
  for (const auto& [range, decays] : runs_) {
    const auto part = [&range = range](const runtime::TensorView& flat) {
      return flat.slice(0, range.begin, range.end);
    };
    runtime::ops::adamw({lr, options_.beta1, options_.beta2, options_.eps,
                         decays ? options_.weight_decay : 0, step},
                        part(store_.gradients()), factor, part(store_.values()),
                        part(store_.first_moments()), part(store_.second_moments()), stream);
  }
  store_.values_changed();
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

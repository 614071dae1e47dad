#include "models/optimizer.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>

#include "runtime/ops/adamw.h"
#include "runtime/ops/gradient_norm.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

AdamW::AdamW(const AdamWOptions& options, ParameterStore& store, const Stream& compute)
    : options_(options),
      store_(store),
      first_moments_({store.table().elements()}, DType::float32, compute),
      second_moments_({store.table().elements()}, DType::float32, compute) {
  fill(first_moments_, 0, compute);
  fill(second_moments_, 0, compute);
  for (const parallel::Parameter& parameter : store.table().parameters()) {
    if (!stretches_.empty() && stretches_.back().weight_decay == parameter.weight_decay) {
      stretches_.back().range.end = parameter.range.end;
    } else {
      stretches_.push_back({parameter.range, parameter.weight_decay});
    }
  }
}

Tensor AdamW::gradient_norm(const Stream& stream) const {
  const runtime::TensorView gradients = store_.gradients();
  const Tensor sums({ops::norm_chunks(gradients.elements())}, DType::float64, stream);
  Tensor norm({1}, DType::float64, stream);
  ops::squares_by_chunk(gradients, sums, stream);
  ops::norm_of_chunks(sums, norm, stream);
  return norm;
}

void AdamW::step(double lr, std::int64_t step, ConstTensorView norm, const Stream& stream) {
  const Tensor factor({1}, DType::float64, stream);
  ops::clip_factor(norm, options_.max_norm, step, factor, stream);
  for (const auto& [range, decays] : stretches_) {
    const auto part = [&range = range](const runtime::TensorView& flat) {
      return flat.slice(0, range.begin, range.end);
    };
    ops::adamw({lr, options_.beta1, options_.beta2, options_.eps,
                decays ? options_.weight_decay : 0, step},
               part(store_.gradients()), factor, part(store_.values()), part(first_moments_),
               part(second_moments_), stream);
  }
  store_.values_changed();
}

std::vector<NamedTensor> AdamW::named_tensors() const {
  std::vector<NamedTensor> tensors =
      named_parts(store_.table(), first_moments_, "optimizer.exp_avg.");
  std::ranges::move(named_parts(store_.table(), second_moments_, "optimizer.exp_avg_sq."),
                    std::back_inserter(tensors));
  return tensors;
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

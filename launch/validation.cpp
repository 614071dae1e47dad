#include "launch/validation.h"

#include <chrono>
#include <cmath>

#include "runtime/error.h"

namespace longhaul::launch {

Validation::Validation(const TrainConfig& config, std::shared_ptr<const ValidationData> data,
                       Trainer& trainer)
    : sequences_per_step_(batch_plan(config).sequences_per_step),
      data_(std::move(data)),
      trainer_(trainer) {
  if (!data_) return;
  LoaderInputs inputs = trainer_.loader_inputs(data_);
  inputs.end = data_->sequences();
  loader_.emplace(std::move(inputs));
}

bool Validation::due(std::int64_t step) const { return data_ && data_->due(step); }

void Validation::load_ahead(std::int64_t step) {
  if (due(step)) loader_->start({step, 0});
}

std::optional<ValidationMetrics> Validation::run(const std::function<bool()>& stop) {
  LONGHAUL_CHECK(data_, "a validation without a corpus");
  const auto begin = runtime::Clock::now();
  const std::int64_t step = trainer_.completed_steps(), end = data_->sequences(),
                     per_step = sequences_per_step_;
  double loss = 0, labels = 0, weight = 0;
  for (std::int64_t cursor = 0; cursor < end; cursor += per_step) {
    std::vector<LocalBatch> batches = loader_->take({step, cursor});
    if (cursor + per_step < end) loader_->start({step, cursor + per_step});
    trainer_.require_same_tasks(batches);
    double own_loss = 0, own_labels = 0, own_weight = 0;
    for (LocalBatch& batch : batches) {
      own_labels += static_cast<double>(batch.local_labels);
      own_weight += batch.local_weight;
      own_loss += trainer_.evaluate(std::move(batch)).loss;
    }
    // Ranks meet after every step's worth of tokens, as in training: none waits for long.
    const std::vector<double> sums =
        trainer_.sum_over_ranks({own_loss, own_labels, own_weight, stop() ? 1.0 : 0.0});
    loss += sums[0];
    labels += sums[1];
    weight += sums[2];
    if (sums[3] > 0 && cursor + per_step < end) return std::nullopt;
  }
  ValidationMetrics metrics;
  metrics.step = step;
  metrics.loss = labels > 0 ? loss / weight : std::nan("");
  metrics.tokens = data_->tokens();
  metrics.labels = static_cast<std::int64_t>(labels);
  metrics.seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  metrics.tokens_per_second = static_cast<double>(metrics.tokens) / metrics.seconds;
  return metrics;
}

}  // namespace longhaul::launch

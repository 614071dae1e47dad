#include "launch/validation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include "runtime/error.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {

namespace {

constexpr double kHostSeconds = 3600;  // for rows to come from a device

}  // namespace

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

/// A batch's rows by position; a dedicated attention server has none.
void Validation::add(const runtime::Rows& rows, const models::Evaluation& evaluation,
                     PositionLosses& positions) const {
  if (trainer_.serves()) return;
  const auto loss = runtime::ops::download<float>(evaluation.row_loss, trainer_.compute());
  const auto correct =
      runtime::ops::download<std::uint8_t>(evaluation.row_correct, trainer_.compute());
  trainer_.compute().synchronize(runtime::deadline_in(kHostSeconds));
  positions.add(rows, *loss, *correct);
}

std::optional<ValidationMetrics> Validation::run(const std::function<bool()>& stop,
                                                 PositionLosses* positions) {
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
    std::optional<PositionLosses> own_positions;
    if (positions != nullptr) own_positions = positions->empty_copy();
    for (LocalBatch& batch : batches) {
      own_labels += static_cast<double>(batch.local_labels);
      own_weight += batch.local_weight;
      const runtime::Rows rows = own_positions ? batch.rows : runtime::Rows();
      const BatchEvaluation evaluation = trainer_.evaluate(std::move(batch));
      own_loss += evaluation.loss;
      if (own_positions) add(rows, evaluation.tensors, *own_positions);
    }
    // Ranks meet after every step's worth of tokens, as in training: none waits for long.
    std::vector<double> numbers{own_loss, own_labels, own_weight, stop() ? 1.0 : 0.0};
    const std::size_t own = numbers.size();
    if (own_positions) std::ranges::copy(own_positions->numbers(), std::back_inserter(numbers));
    const std::vector<double> sums = trainer_.sum_over_ranks(numbers);
    loss += sums[0];
    labels += sums[1];
    weight += sums[2];
    if (positions != nullptr) positions->add_numbers(std::span(sums).subspan(own));
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

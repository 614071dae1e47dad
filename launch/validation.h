#pragma once
// The loss on held-out text, between steps: forward only, and nothing that training reads changes.

#include <functional>
#include <memory>
#include <optional>

#include "launch/loader.h"
#include "launch/metrics.h"
#include "launch/position_losses.h"
#include "launch/trainer.h"
#include "launch/validation_data.h"

namespace longhaul::launch {

class Validation {
 public:
  /// Without `data` none is ever due. Borrows the trainer.
  Validation(const TrainConfig& config, std::shared_ptr<const ValidationData> data,
             Trainer& trainer);

  /// As ValidationData::due().
  bool due(std::int64_t step) const;
  /// Begins to load the first batches of the one that follows this step, if one does: beside the
  /// step, which takes no longer for it where cores are free.
  void load_ahead(std::int64_t step);
  /// The loss after the trainer's last step, of the same batches every time. Passes of
  /// micro_batch_size sequences are dealt to data ranks as in training, one after another also with
  /// interleave = 2; while tokens_per_step tokens are computed, the next ones are loaded. The sum
  /// of losses and what divides it are added in the order of steps and ranks: equal bits on equal
  /// grids. nullopt when some rank's `stop` said so before all was done. Collective. Memory: one
  /// layer's activations of one pass. `positions`, where given, gets the losses of the same labels
  /// by position, over all ranks.
  std::optional<ValidationMetrics> run(const std::function<bool()>& stop,
                                       PositionLosses* positions = nullptr);

 private:
  void add(const runtime::Rows& rows, const models::Evaluation& evaluation,
           PositionLosses& positions) const;

  const std::int64_t sequences_per_step_;
  const std::shared_ptr<const ValidationData> data_;
  Trainer& trainer_;
  std::optional<Loader> loader_;
};

}  // namespace longhaul::launch

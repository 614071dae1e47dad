#pragma once
// What rank 0 tells people and metrics.jsonl.

#include <cstdint>
#include <string>
#include <vector>

#include "launch/metrics.h"
#include "launch/place.h"
#include "launch/train_config.h"
#include "launch/trainer.h"
#include "launch/validation_data.h"

namespace longhaul::launch {

/// Where a run begins.
struct Resumed {
  std::int64_t step = 0;             ///< the last one that is done
  std::vector<std::string> changes;  ///< lines: what it does otherwise than its checkpoint's run
};

/// What there is to say of a run that starts, beside its header.
struct RunStart {
  const Place& place;
  const ValidationData* validation = nullptr;  ///< of a run that has one
  std::string room;                            ///< checkpoint_room()
  const Resumed& resumed;
};

class Reporter {
 public:
  /// Begins metrics.jsonl, or goes on with it, writes the resolved configuration, and prints what
  /// the run is.
  Reporter(const RunHeader& header, const RunStart& start);

  /// Whether metrics.jsonl has the validation that follows this step.
  bool has_validation(std::int64_t step) const { return writer_.validated_step() == step; }
  void step(const StepResult& result, const Trainer& trainer, std::int64_t epoch);
  void validation(const ValidationMetrics& metrics);
  /// Told to stop by a signal, after this step.
  void stopped(std::int64_t step) const;

 private:
  const TrainConfig config_;
  const double peak_flops_;
  const std::int64_t memory_bytes_;  // of the host, or of the GPU
  MetricsWriter writer_;
  double seconds_ = 0;
  std::int64_t steps_ = 0;
};

}  // namespace longhaul::launch

#pragma once
// Loading runs one step ahead: while a step computes, the next one's batches are made beside it.

#include <cstdint>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "launch/batches.h"

namespace longhaul::launch {

/// Where a step stands in its run: what its batches are a function of.
struct StepStart {
  std::int64_t step = 1;
  std::int64_t cursor = 0;  ///< the number of its first sequence
  bool operator==(const StepStart&) const = default;
};

struct LoaderInputs {
  std::shared_ptr<const runtime::SequenceSource> sequences;
  TrainConfig config;  ///< resolved: all degrees of the grid are known
  AttentionAxis axis = {};
  int group = 0;  ///< of the axis
  BatchShape shape;
  /// There are no sequences from this number on: the last pass may have fewer, and a group fewer
  /// passes than another.
  std::int64_t end = std::numeric_limits<std::int64_t>::max();
  /// Called with every batch of a step, on a thread of the loader's: makes what the batch's calls
  /// need. May be empty.
  std::function<void(LocalBatch& batch, std::int64_t step)> prepare = {};
};

/// Makes the batches of one rank, beside the calling thread: documents -> mask -> layout -> rows ->
/// whatever `prepare` makes. At most one step is made ahead, so the rows of two steps exist at
/// most. Nothing is consumed: what was made ahead and not taken is forgotten. One thread calls.
class Loader {
 public:
  explicit Loader(LoaderInputs inputs);
  Loader(const Loader&) = delete;  // its thread knows where it is
  Loader& operator=(const Loader&) = delete;

  /// Begins to make a step's batches and returns. What another start() made is forgotten.
  void start(const StepStart& step);
  /// A step's batches, one a pass: waits for what start() began for this step; makes them now if it
  /// was not called, or for another step. Throws what making them threw.
  std::vector<LocalBatch> take(const StepStart& step);

 private:
  std::vector<LocalBatch> make(const StepStart& step) const;

  struct Ahead {
    StepStart step;
    std::future<std::vector<LocalBatch>> batches;
  };
  const LoaderInputs inputs_;
  const BatchPlan plan_;
  std::optional<Ahead> ahead_;  // last: its destructor waits for the thread, which reads the others
};

}  // namespace longhaul::launch

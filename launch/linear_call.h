#pragma once
// A call of a recurrence on one rank: its tensors, what runs, and what it gave.

#include <memory>
#include <vector>

#include "launch/linear_case.h"
#include "launch/rank_tensors.h"
#include "launch/replay.h"
#include "parallel/attention.h"
#include "runtime/ops/feature_map.h"

namespace longhaul::launch {

/// What all ranks run.
struct LinearSetup {
  LinearCase input;
  parallel::Layout layout;
  parallel::LinearCall call;
  runtime::DType dtype;
  runtime::ops::FeatureMap map;  ///< of q and k
  bool normalize;                ///< attention/normaliser.h

  /// Of the recurrence: values have input.state_columns.
  parallel::Shapes shapes() const;
};

class LinearRankCall {
 public:
  /// Uploads the rank's part of the case. `setup` and `rank` outlive this.
  LinearRankCall(const LinearSetup& setup, const ReplayRank& rank);
  ~LinearRankCall();
  /// Only enqueue, on the rank's compute stream.
  void forward(parallel::Attention& attention, const parallel::AttentionBatch& batch);
  void backward(parallel::Attention& attention, const parallel::AttentionBatch& batch);
  /// All but the figures; complete on rank 0. Collective; blocks.
  LinearResult gather(runtime::Communicator& world) const;

 private:
  struct Tensors;

  void make_backward_tensors();
  runtime::Tensor upload_states(const std::vector<float>& all,
                                const std::vector<std::int64_t>& sequences) const;
  runtime::Tensor make_states(const std::vector<std::int64_t>& sequences) const;
  std::vector<float> gather_states(runtime::Communicator& world, const runtime::Tensor& mine,
                                   std::vector<std::int64_t> parallel::SequenceEnds::*which,
                                   const runtime::Stream& host) const;
  attention::LinearInputs inputs() const;
  /// [n,H] or [n,H,D] of the tensors of log decays, as the recurrence takes them.
  runtime::TensorView log_decays(const runtime::Tensor& tensor) const;
  bool mapped() const { return setup_.map != runtime::ops::FeatureMap::identity; }

  const LinearSetup& setup_;
  const LinearCase& in_;
  const runtime::Stream& compute_;
  const RankTensors upload_;
  const parallel::SequenceEnds ends_;
  std::unique_ptr<Tensors> tensors_;
  parallel::LinearKept kept_;
  std::vector<std::unique_ptr<parallel::Execution>> calls_;
};

}  // namespace longhaul::launch

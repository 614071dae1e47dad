#pragma once
// Before streams of a device wait for other ranks.

#include <memory>
#include <set>

#include "launch/batches.h"
#include "models/model.h"
#include "parallel/attention.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// A library's kernel is loaded at its first use, and a pool grows where it has too little: either
/// may make the driver wait for all of the device's streams while no other thread can reach it, and
/// so for ever where one of those streams waits for a thread of the process. Where none does, as
/// over NCCL, it would only hold up the other ranks: there once is enough.
class Rehearsal {
 public:
  /// `alone`: a communicator of this rank only. The model and the store outlive this.
  Rehearsal(const models::Model& model, models::ParameterStore& store,
            std::unique_ptr<runtime::Communicator> alone, const runtime::Stream& compute);
  /// The first time for each number of rows: forward and backward over as many, as a step's first
  /// passes and as later ones, `together` at once as in a step, with attention to a few rows, so
  /// that all is loaded and taken that a pass needs; what the batch's prepared calls of `attention`
  /// take is held beside. Gradients hold anything afterwards. Returns when done. No stream of the
  /// process may wait for a thread meanwhile.
  void before(const LocalBatch& batch, std::int64_t together, const parallel::Attention& attention);
  /// Whether it has been done for any number of rows.
  bool done() const { return !rows_.empty(); }

 private:
  const models::Model& model_;
  models::ParameterStore& store_;
  const runtime::Stream compute_;
  parallel::Attention attention_;
  std::set<std::int64_t> rows_;  // numbers that were there
};

}  // namespace longhaul::launch

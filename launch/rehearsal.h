#pragma once
// Before ranks wait for each other on a device.

#include <memory>

#include "launch/batches.h"
#include "models/model.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// Runs forward and backward over as many rows as the batch has, attention within them alone. A
/// library's kernel is loaded at its first use, and a pool grows where it has too little: either
/// may wait for all of the device's streams, and so for ever while one of them waits for a rank
/// that waits here. After this both are done for rows of that number. Gradients hold anything
/// afterwards; weights are not touched. `alone`: a communicator of this rank only. Returns when
/// done.
void rehearse(const models::Model& model, models::ParameterStore& store,
              std::unique_ptr<runtime::Communicator> alone, const LocalBatch& batch,
              const runtime::Stream& compute);

}  // namespace longhaul::launch

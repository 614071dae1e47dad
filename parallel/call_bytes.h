#pragma once
// What an attention call takes beyond the caller's tensors, known before any call.

#include <cstdint>

#include "attention/block_plan.h"
#include "parallel/halo.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

/// Of one rank.
struct CallBytes {
  std::int64_t forward = 0, backward = 0;  ///< its arena: slots of blocks that travel, temporaries
  /// From forward to backward: states and transitions of a recurrence, and what a scheme saves.
  std::int64_t kept = 0;
  std::int64_t staged = 0;    ///< of messages in staging memory, at most at once
  std::int64_t gathered = 0;  ///< the same where an all_gather is native
};
/// Both ways of a call, softmax or linear, under inputs.scheme; inputs.direction is not read.
/// Prepares the call, as the model does once a batch. Throws Error for what could not run.
CallBytes call_bytes(const SchemeInputs& inputs, int rank, const attention::Scoring& scoring,
                     const attention::BlockPlace& place);

/// What a short convolution in front of a call adds to it: the rows that it gathers, kept forward.
CallBytes halo_bytes(const HaloInputs& inputs, int rank);

}  // namespace longhaul::parallel

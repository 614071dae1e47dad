#pragma once
// From global sequences to this rank's rows: the only place where training data meets the layout.
// Labels are shifted, and positions and documents numbered, before anything is sharded.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/mask.h"
#include "launch/train_config.h"
#include "parallel/layout.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// The mask that [data] names, of one sequence with these documents.
attention::Mask sequence_mask(const DataConfig& data, const runtime::Sequence& sequence);
/// "causal_window (window 1024)": how console lines name it.
std::string mask_text(const DataConfig& data);

/// Sequence number n of the run, the same on every rank: runtime::Sequences, or a test's generator.
using SequenceSource = std::function<runtime::Sequence(std::int64_t)>;

/// A micro-batch on this rank: B whole sequences' mask and layout, and the rows of them that this
/// rank holds.
struct LocalBatch {
  attention::Mask mask;
  parallel::Layout layout;
  std::vector<std::int32_t> tokens, labels, positions;  ///< in the layout's local row order
  std::int64_t local_labels = 0;                        ///< rows here that have a label
};

/// `sequences`, all equally long, become one token axis; rows are those of `rank`. Mask and layout
/// are the same on all ranks.
LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences, const DataConfig& data,
                            parallel::LayoutKind layout, int ranks, int rank);

}  // namespace longhaul::launch

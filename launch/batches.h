#pragma once
// From global sequences to this rank's rows: the only place where training data meets the layout.
// Labels are shifted, and positions and documents numbered, before anything is sharded.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/mask.h"
#include "launch/train_config.h"
#include "models/layer_types.h"
#include "parallel/layout.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// The mask that [data] names, of one sequence with these documents.
attention::Mask sequence_mask(const DataConfig& data, const runtime::Sequence& sequence);
/// "causal_window (window 1024)": how console lines name it.
std::string mask_text(const DataConfig& data);

/// Sequence number n of the run, the same on every rank: runtime::Sequences, or a test's generator.
using SequenceSource = std::function<runtime::Sequence(std::int64_t)>;

/// What a run's batches have in common on a rank.
struct BatchShape {
  DataConfig data;
  std::vector<models::MaskKind> kinds;  ///< of the model's layers
  parallel::LayoutKind layout = parallel::LayoutKind::contiguous;
  int ranks = 1, rank = 0;  ///< of the context axis
};

/// A micro-batch on this rank: B whole sequences' masks and layout, and the rows of them that this
/// rank holds.
struct LocalBatch {
  std::vector<attention::Mask> masks;  ///< one for each kind of layer
  parallel::Layout layout;
  std::vector<std::int32_t> tokens, labels, positions;  ///< in the layout's local row order
  std::int64_t local_labels = 0;                        ///< rows here that have a label
};

/// `sequences`, all equally long, become one token axis; rows are those of shape.rank. Masks and
/// layout are the same on all ranks; a layout that depends on the mask is made for all layers
/// together.
LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences,
                            const BatchShape& shape);

}  // namespace longhaul::launch

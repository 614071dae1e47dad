#pragma once
// From global sequences to this rank's rows: the only place where training data meets the layout.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "attention/mask.h"
#include "launch/attention_axis.h"
#include "launch/train_config.h"
#include "models/layer_types.h"
#include "parallel/attention.h"
#include "parallel/layout.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// What layers of a kind see of one sequence that packs these documents: the mask that [data]
/// names, and of it the kind's window.
attention::Mask sequence_mask(const DataConfig& data, const runtime::PackedDocuments& documents,
                              const models::MaskKind& kind = {});
/// "causal_window (window 1024)": how console lines name it.
std::string mask_text(const DataConfig& data);

/// What a run's batches have in common on a rank.
struct BatchShape {
  DataConfig data;
  std::vector<models::MaskKind> kinds;  ///< of the model's layers
  parallel::LayoutKind layout = parallel::LayoutKind::contiguous;
  int ranks = 1, rank = 0;  ///< of the attention's axis
  int without_rows = 0;     ///< of those, the last: dedicated attention servers
};
/// `rank`: of a group of the axis.
BatchShape batch_shape(const TrainConfig& config, std::vector<models::MaskKind> kinds,
                       const AttentionAxis& axis, int rank);

/// What is known of a micro-batch without its tokens; the same on all ranks.
struct PlannedBatch {
  std::vector<attention::Mask> masks;  ///< one for each kind of layer
  parallel::Layout layout;
};
/// The sequences `numbers`, all equally long, become one token axis. Masks and layout follow from
/// their documents; a layout that depends on the mask is made for all layers together. Reads no
/// token.
PlannedBatch plan_batch(const runtime::SequenceSource& source,
                        std::span<const std::int64_t> numbers, const BatchShape& shape);

/// A micro-batch on this rank: B whole sequences' masks and layout, and the rows of them that this
/// rank holds.
struct LocalBatch {
  std::vector<attention::Mask> masks;  ///< one for each kind of layer
  parallel::Layout layout;
  runtime::Rows rows;             ///< in the layout's local row order
  std::int64_t local_labels = 0;  ///< rows here that have a label; one of weight 0 is none
  double local_weight = 0;        ///< of those labels: what the sum of their losses is divided by
  /// Of each mask, its calls prepared: what `LoaderInputs::prepare` makes.
  std::vector<std::shared_ptr<const parallel::AttentionBatch>> attention = {};
};

/// What plan_batch() says, and shape.rank's rows: of the tokens only those are read.
LocalBatch make_local_batch(const runtime::SequenceSource& source,
                            std::span<const std::int64_t> numbers, const BatchShape& shape);

}  // namespace longhaul::launch

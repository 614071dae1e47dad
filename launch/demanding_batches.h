#pragma once
// Which micro-batches of a run may take the most memory, told from their documents alone.

#include <cstdint>
#include <vector>

#include "launch/train_config.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// Of the run's first micro-batches, of a few dozen sequences together (which its order spreads
/// over the corpus), those that may need most: the ones with the largest area of documents, the
/// longest document and the most documents; each as its sequences' numbers. The first one alone
/// where the mask does not depend on documents. At most eight; reads no token. A micro-batch is
/// what a pass of one group of the attention's axis takes.
std::vector<std::vector<std::int64_t>> demanding_batches(const TrainConfig& config,
                                                         const runtime::SequenceSource& sequences);

}  // namespace longhaul::launch

#pragma once
// Block calls through cuDNN. Private to attention/.

#include <memory>
#include <vector>

#include "attention/block_plan.h"

namespace longhaul::attention::detail {

/// The plan where choose_kernels() takes cuDNN, its graphs built and their kernels loaded; nullptr
/// where the exact kernels serve. Arguments as cuda_plan_forward()'s. Throws Error(config) where
/// cuDNN is demanded and cannot, Error(launch) where this build has none.
std::shared_ptr<const BlockPlan> sdpa_plan(Pass pass, const std::vector<Slice>& bands,
                                           const BlockShape& shape, const Scoring& scoring,
                                           const BlockPlace& place);

}  // namespace longhaul::attention::detail

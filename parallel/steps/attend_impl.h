#pragma once
// What the steps of this room share; private to it.

#include "attention/block_plan.h"
#include "parallel/frame.h"
#include "parallel/steps/attend.h"

namespace longhaul::parallel::detail {

attention::BlockShape shape_of(const View& q, const View& kv, const std::optional<View>& v,
                               const Preparation& with);

/// The program's records and the scoring have the LSE, or neither does.
void check_weighting(const View& view, std::size_t fields_of_softmax, const Preparation& with);

attention::BlockForwardTensors tensors_of(const Attend& step, const Frame& frame);
attention::BlockBackwardTensors tensors_of(const AttendBackward& step, const Frame& frame);

}  // namespace longhaul::parallel::detail

#pragma once
// Model floating-point operations, for MFU.

#include <cstdint>

#include "models/llama_config.h"

namespace longhaul::models {

/// Forward and backward of one step, a multiply-add counted as two:
///   matrices:  6 * tokens * (weights of all projections and of the head)
///   attention: 12 * layers * area * H * D, area = visible (query, key) pairs of the mask over all
///   sequences:
///              Q K^T and P V forward (2 * 2), their four products backward (4 * 2)
/// The embedding lookup, norms and other element-wise work count nothing; nor does anything
/// computed twice (recomputation, and the scores that a blocked backward computes again).
double step_flops(const LlamaConfig& config, std::int64_t tokens, std::int64_t mask_area);

}  // namespace longhaul::models

#pragma once
// The Llama family. Source: Touvron et al. 2023 (LLaMA); names and conventions of Hugging Face's
// weights.

#include "models/llama_config.h"
#include "models/model.h"

namespace longhaul::models {

/// Throws Error(config) for a bad config.
///
/// Parameter group 0 is the embedding, group 1 + l layer l, the last group the final norm and, when
/// it is not tied, the head. Matrices are drawn from N(0, 0.02^2), those that write into the
/// residual stream (o_proj, down_proj) scaled by 1/sqrt(2 layers) (Radford et al. 2019, GPT-2);
/// norms start at one. Weight decay applies to matrices except the embedding, as is common
/// practice; norms are free of it.
Model llama(const LlamaConfig& config, const ModelOptions& options);

}  // namespace longhaul::models

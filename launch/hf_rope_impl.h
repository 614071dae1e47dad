#pragma once
// Private to the files about Hugging Face folders: the two spellings of rotary embedding. Until
// transformers 4 `rope_theta` stands beside `rope_scaling`; from 5 on `rope_parameters` holds both,
// and tools that know the old one silently take a theta of 1e4 where it is missing.

#include <string>
#include <vector>

#include "launch/hf_json_impl.h"
#include "launch/train_config.h"

namespace longhaul::launch {

/// Whether transformers' class has this type: its Phi-3 refuses linear, dynamic and llama3, and
/// takes yarn for longrope.
bool has_hf_rope_type(const std::string& family, const HfJson& type);

/// Rewrites either spelling, or both, in the words of [model]: `rope_theta`,
/// `partial_rotary_factor`, `rope_local_base_freq` and the table `rope_scaling`, which is absent
/// where nothing is scaled. A `rope_scaling` that is not null beats `rope_parameters`; what stands
/// inside of them beats what stands beside. Adds what cannot be understood to `problems`.
void read_rope(HfJson& config, const std::string& family, std::vector<std::string>& problems);

/// Writes both spellings of what a complete configuration says. A `rope_scaling` that already says
/// the same stays as it is written.
void write_rope(HfJson& config, const ModelConfig& model);

}  // namespace longhaul::launch

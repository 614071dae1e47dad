#pragma once
// What other programs call our keys, values and verbs: Hugging Face, Megatron-LM, torchtitan,
// litgpt, nanoGPT, DeepSpeed. Such a word is answered with ours, never accepted.

#include <span>

#include "runtime/config/schema.h"

namespace longhaul::launch {

/// Of keys and sections.
const runtime::ConfigSynonyms& peer_words();

/// Values of the key `path` that are called `value` here.
struct PeerValues {
  const char* path;
  const char* value;
  const char* words;  ///< with a space between them
};
std::span<const PeerValues> peer_values();

struct PeerVerbs {
  const char* verb;
  const char* words;
};
std::span<const PeerVerbs> peer_verbs();

}  // namespace longhaul::launch

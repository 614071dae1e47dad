#pragma once
// Corpora whose blocks are small enough to tell which tokens a reader touches.

#include <filesystem>
#include <set>
#include <span>

#include "runtime/io/corpus.h"

namespace longhaul::test {

/// Writes a corpus of documents of these lengths with a hash over each `block_tokens` tokens; those
/// of the blocks `damaged` are wrong, so that reading such a block fails.
void write_small_blocks(const std::filesystem::path& path, std::span<const std::int32_t> tokens,
                        std::span<const std::int64_t> lengths, std::int64_t block_tokens,
                        const std::set<std::int64_t>& damaged = {});

}  // namespace longhaul::test

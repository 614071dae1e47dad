#pragma once
// Tokenizers in the format of the Hugging Face library of that name: tokenizer.json, version "1.0".

#include <filesystem>
#include <memory>

#include "runtime/io/tokenizer.h"

namespace longhaul::runtime {

/// Byte-pair encoding as that library does it, token for token (0.23 was compared with): added
/// tokens, the normalizers NFC, Prepend, Replace, the pre-tokenizers Split (Isolated and
/// MergedWithPrevious), ByteLevel,
/// Metaspace, Digits, the decoders ByteLevel, Replace, ByteFallback, Fuse, Strip, and sequences of
/// them. Classes of characters are those of Unicode 16, compositions those of Unicode 9. A
/// post-processor is checked and not applied: what begins and ends a document is the caller's
/// business. decode() keeps special tokens.
/// `path`: the file, or the folder that holds one. Throws: Error(io) when it cannot be read;
/// Error(data) naming the place in it for what is no tokenizer, does not fit together (merges of
/// tokens that do not exist, ids that are there twice or far apart) or is not supported: other
/// models, types and options, truncation, padding.
std::unique_ptr<Tokenizer> make_json_tokenizer(const std::filesystem::path& path);

}  // namespace longhaul::runtime

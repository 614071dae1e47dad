#pragma once
// `longhaul tokenize`: files and folders of text become one corpus.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace longhaul::launch {

struct TokenizeOptions {
  std::vector<std::filesystem::path> paths;  ///< files, and folders taken with all below them
  std::filesystem::path output;
  std::string tokenizer = "bytes";  ///< or the path of a SentencePiece model
  bool force = false;               ///< an `output` that is a file already is replaced
};

struct TokenizeSummary {
  std::filesystem::path output;
  std::string tokenizer;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t longest_document_tokens = 0;
  std::int64_t vocabulary_size = 0;
  double unigram_entropy = 0;  ///< nats
};
/// One line for the console.
std::string to_string(const TokenizeSummary& summary);

/// Every file is one document, in the order of `paths` and, inside a folder, of path names (byte
/// order). An empty file is an empty document. Equal inputs give equal output bytes. Throws:
/// Error(usage) without paths, when the output is among the inputs or may not be replaced;
/// Error(io) for what cannot be read or written; Error(data) for a path that is neither file nor
/// folder, a folder without files, text or a model that the tokenizer refuses. Nothing is left
/// under `output` then.
TokenizeSummary tokenize(const TokenizeOptions& options);

}  // namespace longhaul::launch

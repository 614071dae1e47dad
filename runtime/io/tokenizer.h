#pragma once
// Text to token ids and back.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// What a corpus records: "bytes", or "sentencepiece:FILE.model:XXH3-128 of the file".
  virtual const std::string& name() const = 0;
  virtual std::int64_t vocabulary_size() const = 0;
  /// Throws Error(data) for text that the tokenizer refuses.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// Throws Error(data) for an id outside the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> tokens) const = 0;
};

/// `what` is "bytes" (256 ids, the bytes themselves) or the path of a SentencePiece model.
/// Throws Error(io) when the model cannot be read, Error(data) when it is none.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& what);

}  // namespace longhaul::runtime

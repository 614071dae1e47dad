#pragma once
// Text to token ids and back.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

/// The tokens of a text, and what of the text they do not keep. What a SentencePiece model's own
/// normalisation changes (spaces, compatibility characters) is not counted.
struct EncodedText {
  std::vector<std::int32_t> tokens;
  /// The byte of the text at which each token begins, never falling; empty unless asked for.
  std::vector<std::int64_t> begins;
  std::int64_t unknown_characters = 0;  ///< became the unknown token
  std::int64_t invalid_bytes = 0;       ///< are no UTF-8; each became U+FFFD
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// What a corpus records: "bytes", or "sentencepiece:FILE.model:XXH3-128 of the file".
  virtual const std::string& name() const = 0;
  virtual std::int64_t vocabulary_size() const = 0;
  /// Nothing is added to the text: no token begins or ends a document. `begins`: whether to say
  /// where tokens begin. Throws Error(data) for text that the tokenizer refuses.
  virtual EncodedText encode(std::string_view text, bool begins) const = 0;
  /// Throws Error(data) for an id outside the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> tokens) const = 0;
};

/// `what` is "bytes" (256 ids, the bytes themselves) or the path of a SentencePiece model.
/// Throws Error(io) when the model cannot be read, Error(data) when it is none.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& what);

}  // namespace longhaul::runtime

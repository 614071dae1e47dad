#pragma once
// Text to token ids and back.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::runtime {

/// The tokens of a text, and what of the text they do not keep. What a tokenizer's own
/// normalisation changes (spaces, compatibility characters, composition) is not counted.
struct EncodedText {
  std::vector<std::int32_t> tokens;
  /// The byte of the text at which each token begins, never falling; empty unless asked for.
  std::vector<std::int64_t> begins;
  std::int64_t unknown_characters = 0;  ///< became the unknown token
  /// Became nothing, where a tokenizer.json has no unknown token, as the Hugging Face library has
  /// it; of a vocabulary of bytes these are bytes.
  std::int64_t dropped_characters = 0;
  /// The first of them as it was once normalized, and the byte of the text at which it begins; the
  /// latter only where `begins` were asked for.
  std::string first_dropped;
  std::int64_t first_dropped_at = 0;
  std::int64_t invalid_bytes = 0;  ///< are no UTF-8; repair_utf8() says what became of them
};

/// All members may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// What a corpus records: "bytes", "sentencepiece:FILE.model:XXH3-128 of the file", or
  /// "tokenizer.json:FILE or its folder:XXH3-128 of the file".
  virtual const std::string& name() const = 0;
  /// Every id is below it.
  virtual std::int64_t vocabulary_size() const = 0;
  /// Nothing is added to the text: no token begins or ends a document. `begins`: whether to say
  /// where tokens begin. Throws Error(data) for text that the tokenizer refuses.
  virtual EncodedText encode(std::string_view text, bool begins) const = 0;
  /// Throws Error(data) for an id that stands for no token.
  virtual std::string decode(std::span<const std::int32_t> tokens) const = 0;
  /// How many bytes of text the tokens with which a document begins stand for. Special tokens
  /// stand for none, whatever decode() writes, and a part of a character for its own bytes, of
  /// which decode() makes U+FFFD. Nothing where the tokens do not say: an unknown token is among
  /// them, or there is no decoder. Throws as decode().
  virtual std::optional<std::int64_t> text_bytes(std::span<const std::int32_t> tokens) const = 0;
  /// The id of a token by its name in the vocabulary, "<s>" or "<|endoftext|>" say, where it has
  /// it.
  virtual std::optional<std::int32_t> token_id(std::string_view token) const = 0;
};

/// `what` is "bytes" (256 ids, the bytes themselves), the path of a SentencePiece model, or that of
/// a tokenizer.json (runtime/text/json_tokenizer.h): a file whose name ends in .json, or a folder.
/// Throws Error(io) when it cannot be read, Error(data) when it is none or asks for what we refuse.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& what);

}  // namespace longhaul::runtime

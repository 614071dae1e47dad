#include "runtime/io/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMaxModelBytes = std::int64_t{1} << 30;
constexpr std::int64_t kMaxTextBytes = (std::int64_t{1} << 31) - 1;  // SentencePiece counts in int

void check_ids(const Tokenizer& tokenizer, std::span<const std::int32_t> tokens) {
  for (std::size_t index = 0; index < tokens.size(); ++index) {
    if (tokens[index] < 0 || tokens[index] >= tokenizer.vocabulary_size()) {
      fail(ExitCode::data, "token ", index, " is ", tokens[index], ", outside the vocabulary of ",
           tokenizer.vocabulary_size(), " of tokenizer '", tokenizer.name(), "'");
    }
  }
}

struct Utf8Contents {
  std::int64_t characters = 0, invalid_bytes = 0;
};

/// Bytes in a character that begins here, or 0: as RFC 3629 has it.
std::size_t character_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  const std::size_t size = lead < 0x80   ? 1
                           : lead < 0xc2 ? 0
                           : lead < 0xe0 ? 2
                           : lead < 0xf0 ? 3
                                         : 4;
  if (size < 2) return size;
  if (lead > 0xf4 || text.size() < size) return 0;
  for (std::size_t i = 1; i < size; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  // Longer than needed, surrogates, beyond U+10FFFF.
  const unsigned second = byte(1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
      (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f))
    return 0;
  return size;
}

/// After an invalid byte reading goes on at the next one, as SentencePiece does.
Utf8Contents utf8_contents(std::string_view text) {
  Utf8Contents contents;
  while (!text.empty()) {
    const std::size_t size = character_bytes(text);
    ++(size > 0 ? contents.characters : contents.invalid_bytes);
    text.remove_prefix(std::max<std::size_t>(1, size));
  }
  return contents;
}

class BytesTokenizer final : public Tokenizer {
 public:
  const std::string& name() const override { return name_; }
  std::int64_t vocabulary_size() const override { return 256; }
  EncodedText encode(std::string_view text, bool begins) const override {
    EncodedText encoded;
    encoded.tokens.resize(text.size());
    for (std::size_t i = 0; i < text.size(); ++i)
      encoded.tokens[i] = static_cast<unsigned char>(text[i]);
    if (begins) {
      encoded.begins.resize(text.size());
      std::iota(encoded.begins.begin(), encoded.begins.end(), 0);
    }
    return encoded;
  }
  std::string decode(std::span<const std::int32_t> tokens) const override {
    check_ids(*this, tokens);
    std::string text(tokens.size(), '\0');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(tokens[i]);
    return text;
  }

 private:
  std::string name_ = "bytes";
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& path) {
    const std::string model = read_file(path, kMaxModelBytes);
    name_ = concat("sentencepiece:", path.filename().string(), ":", xxh3_128(model));
    const auto status = processor_.LoadFromSerializedProto(model);
    if (!status.ok()) {
      fail(ExitCode::data, path.string(), ": not a SentencePiece model (", status.ToString(),
           "); --tokenizer takes 'bytes' or the path of a model");
    }
    if (processor_.GetPieceSize() < 1) {
      fail(ExitCode::data, path.string(), ": the SentencePiece model has no pieces");
    }
  }
  const std::string& name() const override { return name_; }
  std::int64_t vocabulary_size() const override { return processor_.GetPieceSize(); }
  EncodedText encode(std::string_view text, bool begins) const override {
    if (std::ssize(text) > kMaxTextBytes) {
      fail(ExitCode::data, "a document of ", text.size(), " bytes; tokenizer '", name_,
           "' takes at most ", kMaxTextBytes, ": cut it into several");
    }
    sentencepiece::ImmutableSentencePieceText pieces;
    require(processor_.Encode({text.data(), text.size()}, pieces.mutable_proto()));
    EncodedText encoded;
    encoded.tokens.reserve(pieces.pieces_size());
    for (std::size_t i = 0; i < pieces.pieces_size(); ++i) {
      const auto piece = pieces.pieces(static_cast<int>(i));
      encoded.tokens.push_back(static_cast<std::int32_t>(piece.id()));
      if (begins) encoded.begins.push_back(piece.begin());
      if (processor_.IsUnknown(encoded.tokens.back()))
        encoded.unknown_characters += utf8_contents(piece.surface()).characters;
    }
    encoded.invalid_bytes = utf8_contents(text).invalid_bytes;
    return encoded;
  }
  std::string decode(std::span<const std::int32_t> tokens) const override {
    check_ids(*this, tokens);
    std::string text;
    require(processor_.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text));
    return text;
  }

 private:
  template <class Status>
  void require(const Status& status) const {
    if (!status.ok()) fail(ExitCode::data, "tokenizer '", name_, "': ", status.ToString());
  }
  std::string name_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& what) {
  if (what == "bytes") return std::make_unique<BytesTokenizer>();
  return std::make_unique<SentencePieceTokenizer>(what);
}

}  // namespace longhaul::runtime

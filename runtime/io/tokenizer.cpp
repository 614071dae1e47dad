#include "runtime/io/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "runtime/text/json_tokenizer.h"
#include "runtime/text/utf8.h"

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

std::int64_t characters(std::string_view valid_utf8) {
  return std::ranges::count_if(
      valid_utf8, [](char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; });
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
  std::optional<std::int64_t> text_bytes(std::span<const std::int32_t> tokens) const override {
    check_ids(*this, tokens);
    return std::ssize(tokens);
  }
  std::optional<std::int32_t> token_id(std::string_view) const override { return std::nullopt; }

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
      fail(
          ExitCode::data, path.string(), ": not a SentencePiece model (", status.ToString(),
          "); a tokenizer is 'bytes', the path of a SentencePiece model, or of a tokenizer.json or "
          "the folder that holds it");
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
    EncodedText encoded;
    Utf8Repair repair;
    const bool repaired = valid_utf8_bytes(text) < text.size();
    if (repaired) {
      repair = repair_utf8(text, begins);
      encoded.invalid_bytes = repair.invalid_bytes;
      text = repair.text;
    }
    sentencepiece::ImmutableSentencePieceText pieces;
    require(processor_.Encode({text.data(), text.size()}, pieces.mutable_proto()));
    encoded.tokens.reserve(pieces.pieces_size());
    for (std::size_t i = 0; i < pieces.pieces_size(); ++i) {
      const auto piece = pieces.pieces(static_cast<int>(i));
      encoded.tokens.push_back(static_cast<std::int32_t>(piece.id()));
      if (begins) encoded.begins.push_back(piece.begin());
      if (processor_.IsUnknown(encoded.tokens.back()))
        encoded.unknown_characters += characters(piece.surface());
    }
    if (begins && repaired) {
      for (std::int64_t& begin : encoded.begins)
        begin = repair.origins[static_cast<std::size_t>(begin)];
    }
    return encoded;
  }
  std::string decode(std::span<const std::int32_t> tokens) const override {
    check_ids(*this, tokens);
    std::string text;
    require(processor_.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text));
    return text;
  }
  std::optional<std::int64_t> text_bytes(std::span<const std::int32_t> tokens) const override {
    check_ids(*this, tokens);
    std::vector<int> kept;
    for (const std::int32_t token : tokens) {
      if (processor_.IsUnknown(token)) return std::nullopt;
      if (processor_.IsControl(token)) continue;
      // One byte of a character is no text; one of ASCII is, and as long.
      kept.push_back(processor_.IsByte(token) ? processor_.PieceToId("<0x41>") : token);
    }
    std::string text;
    require(processor_.Decode(kept, &text));
    return std::ssize(text);
  }
  std::optional<std::int32_t> token_id(std::string_view token) const override {
    const int id = processor_.PieceToId({token.data(), token.size()});
    if (id < 0 || id >= processor_.GetPieceSize() || processor_.IdToPiece(id) != token) return {};
    return id;
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
  const std::filesystem::path path = what;
  std::error_code ignored;
  if (path.extension() == ".json" || std::filesystem::is_directory(path, ignored))
    return make_json_tokenizer(path);
  return std::make_unique<SentencePieceTokenizer>(path);
}

}  // namespace longhaul::runtime

#include "runtime/io/tokenizer.h"

#include <sentencepiece_processor.h>

#include <filesystem>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMaxModelBytes = std::int64_t{1} << 30;

void check_ids(const Tokenizer& tokenizer, std::span<const std::int32_t> tokens) {
  for (std::size_t index = 0; index < tokens.size(); ++index) {
    if (tokens[index] < 0 || tokens[index] >= tokenizer.vocabulary_size()) {
      fail(ExitCode::data, "token ", index, " is ", tokens[index], ", outside the vocabulary of ",
           tokenizer.vocabulary_size(), " of tokenizer '", tokenizer.name(), "'");
    }
  }
}

class BytesTokenizer final : public Tokenizer {
 public:
  const std::string& name() const override { return name_; }
  std::int64_t vocabulary_size() const override { return 256; }
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> tokens(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<unsigned char>(text[i]);
    return tokens;
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
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    require(processor_.Encode({text.data(), text.size()}, &ids));
    return {ids.begin(), ids.end()};
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

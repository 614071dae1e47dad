#include <algorithm>
#include <filesystem>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kBlockTokens = std::int64_t{1} << 20;

hdf5::Element element_for(std::int64_t vocabulary_size) {
  if (vocabulary_size <= std::int64_t{1} << 8) return hdf5::Element::uint8;
  if (vocabulary_size <= std::int64_t{1} << 16) return hdf5::Element::uint16;
  return hdf5::Element::uint32;
}

std::filesystem::path beside(const std::filesystem::path& path, const char* what) {
  return path.parent_path() / concat(path.filename().string(), ".", what, "-", unique_suffix());
}

}  // namespace

struct CorpusWriter::State {
  State(std::filesystem::path path, std::int64_t vocabulary, std::string tokenizer_name)
      : output(std::move(path)),
        spool_path(beside(output, "tokens")),
        partial_path(beside(output, "tmp")),
        vocabulary_size(vocabulary),
        tokenizer(std::move(tokenizer_name)),
        element(element_for(vocabulary)),
        spool(FileHandle::create(spool_path)) {}
  ~State() {
    std::error_code ignored;  // nothing is left to tell
    std::filesystem::remove(spool_path, ignored);
    std::filesystem::remove(partial_path, ignored);
  }

  std::filesystem::path output, spool_path, partial_path;
  std::int64_t vocabulary_size = 0;
  std::string tokenizer;
  hdf5::Element element;
  FileHandle spool;
  std::vector<std::int64_t> documents{0};
  std::vector<std::uint64_t> block_hashes;
  std::vector<std::byte> block;  // packed tokens of the block at hand
  std::int64_t tokens = 0;

  void flush_block() {
    if (block.empty()) return;
    block_hashes.push_back(xxh3_64(block));
    spool.write_all(block);
    block.clear();
  }
  void write_file();
  void copy_tokens(hdf5::File& file);
};

CorpusWriter::CorpusWriter(std::filesystem::path path, std::int64_t vocabulary_size,
                           std::string tokenizer) {
  LONGHAUL_CHECK(vocabulary_size >= 1 && vocabulary_size <= kMaxVocabulary, "vocabulary of ",
                 vocabulary_size, " tokens");
  state_ = std::make_unique<State>(std::move(path), vocabulary_size, std::move(tokenizer));
}
CorpusWriter::~CorpusWriter() = default;

void CorpusWriter::append(std::span<const std::int32_t> tokens) {
  State& state = *state_;
  const auto width = static_cast<std::size_t>(size_bytes(state.element));
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= state.vocabulary_size) {
      fail(ExitCode::data, state.output.string(), ": token ", state.tokens, " is ", token,
           ", outside the vocabulary of ", state.vocabulary_size);
    }
    for (std::size_t byte = 0; byte < width; ++byte) {
      state.block.push_back(static_cast<std::byte>(token >> (8 * byte) & 0xff));
    }
    ++state.tokens;
    if (state.tokens % kBlockTokens == 0) state.flush_block();
  }
}

void CorpusWriter::end_document() { state_->documents.push_back(state_->tokens); }

void CorpusWriter::State::copy_tokens(hdf5::File& file) {
  hdf5::Dataset dataset = file.create_dataset("tokens", element, hdf5::Extents{tokens});
  const FileHandle source = FileHandle::read(spool_path);
  const std::int64_t width = size_bytes(element);
  std::vector<std::byte> buffer;
  for (std::int64_t at = 0; at < tokens; at += kBlockTokens) {
    const std::int64_t count = std::min(kBlockTokens, tokens - at);
    buffer.resize(static_cast<std::size_t>(count * width));
    for (std::size_t have = 0; have < buffer.size();) {
      const std::size_t got = source.read_some(std::span(buffer).subspan(have));
      if (got == 0) fail(ExitCode::io, spool_path.string(), ": became shorter");
      have += got;
    }
    dataset.write_bytes(hdf5::Extents{at}, hdf5::Extents{count}, element, buffer);
  }
}

void CorpusWriter::State::write_file() {
  hdf5::File file = hdf5::File::create(partial_path);
  file.set_attribute("format_version", kCorpusFormatVersion);
  file.set_attribute("vocabulary_size", vocabulary_size);
  file.set_attribute("tokenizer", tokenizer);
  file.set_attribute("block_tokens", kBlockTokens);
  file.set_attribute("documents_hash", hex64(xxh3_64(std::as_bytes(std::span(documents)))));
  file.write<std::int64_t>("documents", {std::ssize(documents)}, documents);
  file.write<std::uint64_t>("block_hashes", {std::ssize(block_hashes)}, block_hashes);
  copy_tokens(file);
  file.close();
}

void CorpusWriter::finish() {
  State& state = *state_;
  if (state.documents.back() != state.tokens) {
    fail(ExitCode::internal, state.output.string(), ": the last document was not ended");
  }
  state.flush_block();
  state.spool.close();
  state.write_file();
  // Reads what was written: a swallowed write error must not survive under the final name.
  sync_and_drop_cache(state.partial_path);
  Corpus::open(state.partial_path).verify();
  std::error_code code;
  std::filesystem::rename(state.partial_path, state.output, code);
  if (code)
    fail(ExitCode::io, state.output.string(), ": cannot rename into place: ", code.message());
  const auto folder = state.output.parent_path();
  sync_folder(folder.empty() ? "." : folder);
}

}  // namespace longhaul::runtime

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/disk.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "runtime/io/unigram_impl.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kBlockTokens = std::int64_t{1} << 20;
constexpr std::int64_t kCopyTokens = std::int64_t{1} << 20;  // from the spool at a time
constexpr std::int64_t kFullBytes = std::int64_t{64} << 10;  // a disk with less is full

hdf5::Element element_for(std::int64_t vocabulary_size) {
  if (vocabulary_size <= std::int64_t{1} << 8) return hdf5::Element::uint8;
  if (vocabulary_size <= std::int64_t{1} << 16) return hdf5::Element::uint16;
  return hdf5::Element::uint32;
}

}  // namespace

struct CorpusWriter::State {
  State(const std::filesystem::path& path, Existing existing, const CorpusInfo& like)
      : output(path, existing),
        spool_path(output.beside("tokens")),
        weight_spool_path(output.beside("weights")),
        partial_path(output.beside("tmp")),
        vocabulary_size(like.vocabulary_size),
        tokenizer(like.tokenizer),
        element(like.token_element),
        block_tokens(like.block_tokens),
        spool(FileHandle::create(spool_path)),
        counts(like.vocabulary_size) {}
  ~State() {
    std::error_code ignored;  // nothing is left to tell
    std::filesystem::remove(spool_path, ignored);
    std::filesystem::remove(weight_spool_path, ignored);
    std::filesystem::remove(partial_path, ignored);
  }

  const OutputFile output;
  const std::filesystem::path spool_path, weight_spool_path, partial_path;
  std::int64_t vocabulary_size = 0;
  std::string tokenizer;
  hdf5::Element element;
  std::int64_t block_tokens;
  FileHandle spool;
  UnigramCounts counts;
  std::vector<std::int64_t> documents{0};
  std::vector<std::uint64_t> block_hashes;
  std::vector<std::byte> block;  // packed tokens of the block at hand
  std::int64_t tokens = 0;
  std::optional<FileHandle> weight_spool;  // float32, once a weight is not 1
  bool bytes_hold_weights = true;          // whole numbers up to 255 so far

  void append_weights(std::span<const float> weights, std::int64_t count);
  void flush_block() {
    if (block.empty()) return;
    block_hashes.push_back(xxh3_64(block));
    spool.write_all(block);
    block.clear();
  }
  void write_file();
  void copy_tokens(hdf5::File& file);
  void copy_weights(hdf5::File& file);
};

namespace {

/// A spool from its beginning, a piece at a time.
class SpoolReader {
 public:
  explicit SpoolReader(const std::filesystem::path& path) : file_(FileHandle::read(path)) {}
  void read(std::span<std::byte> out) const {
    for (std::size_t have = 0; have < out.size();) {
      const std::size_t got = file_.read_some(out.subspan(have));
      if (got == 0) fail(ExitCode::io, file_.path().string(), ": became shorter");
      have += got;
    }
  }

 private:
  const FileHandle file_;
};

}  // namespace

CorpusWriter::CorpusWriter(const std::filesystem::path& path, std::int64_t vocabulary_size,
                           std::string tokenizer, Existing existing) {
  LONGHAUL_CHECK(vocabulary_size >= 1 && vocabulary_size <= kMaxVocabulary, "vocabulary of ",
                 vocabulary_size, " tokens");
  CorpusInfo info;
  info.vocabulary_size = vocabulary_size;
  info.tokenizer = std::move(tokenizer);
  info.token_element = element_for(vocabulary_size);
  info.block_tokens = kBlockTokens;
  state_ = std::make_unique<State>(path, existing, info);
}
CorpusWriter::CorpusWriter(const std::filesystem::path& path, const CorpusInfo& like)
    : state_(std::make_unique<State>(path, Existing::replace, like)) {}
CorpusWriter::~CorpusWriter() = default;

void CorpusWriter::append(std::span<const std::int32_t> tokens, std::span<const float> weights) {
  State& state = *state_;
  LONGHAUL_CHECK(weights.empty() || weights.size() == tokens.size(), weights.size(), " weights of ",
                 tokens.size(), " tokens");
  state.append_weights(weights, std::ssize(tokens));
  const auto width = static_cast<std::size_t>(size_bytes(state.element));
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= state.vocabulary_size) {
      fail(ExitCode::data, state.output.named().string(), ": token ", state.tokens, " is ", token,
           ", outside the vocabulary of ", state.vocabulary_size);
    }
    for (std::size_t byte = 0; byte < width; ++byte) {
      state.block.push_back(static_cast<std::byte>(token >> (8 * byte) & 0xff));
    }
    ++state.tokens;
    if (state.tokens % state.block_tokens == 0) state.flush_block();
  }
  state.counts.add(tokens);
}

void CorpusWriter::end_document() { state_->documents.push_back(state_->tokens); }

void CorpusWriter::State::copy_tokens(hdf5::File& file) {
  hdf5::Dataset dataset = file.create_dataset("tokens", element, hdf5::Extents{tokens});
  const SpoolReader source(spool_path);
  const std::int64_t width = size_bytes(element);
  std::vector<std::byte> buffer;
  for (std::int64_t at = 0; at < tokens; at += kCopyTokens) {
    const std::int64_t count = std::min(kCopyTokens, tokens - at);
    buffer.resize(static_cast<std::size_t>(count * width));
    source.read(buffer);
    dataset.write_bytes(hdf5::Extents{at}, hdf5::Extents{count}, element, buffer);
  }
}

/// Weights pass through a spool of their own from the first on that is not 1; `count` of them are 1
/// where there are none.
void CorpusWriter::State::append_weights(std::span<const float> weights, std::int64_t count) {
  const auto ones = [&](std::int64_t left) {
    const std::vector<float> piece(static_cast<std::size_t>(std::min(kCopyTokens, left)), 1.0f);
    for (; left > 0; left -= std::min(kCopyTokens, left)) {
      weight_spool->write_all(std::as_bytes(
          std::span(piece).first(static_cast<std::size_t>(std::min(kCopyTokens, left)))));
    }
  };
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const float weight = weights[i];
    if (!(weight >= 0 && std::isfinite(weight))) {
      fail(ExitCode::data, output.named().string(), ": the weight of token ",
           tokens + static_cast<std::int64_t>(i), " is ", weight,
           "; expected a finite weight of at least 0");
    }
    bytes_hold_weights &= weight <= 255 && weight == std::floor(weight);
  }
  const bool all_one = std::ranges::all_of(weights, [](float weight) { return weight == 1; });
  if (!weight_spool && !all_one) {
    weight_spool.emplace(FileHandle::create(weight_spool_path));
    ones(tokens);
  }
  if (!weight_spool) return;
  weight_spool->write_all(std::as_bytes(weights));
  if (weights.empty()) ones(count);
}

void CorpusWriter::State::copy_weights(hdf5::File& file) {
  const hdf5::Element stored = bytes_hold_weights ? hdf5::Element::uint8 : hdf5::Element::float32;
  hdf5::Dataset dataset = file.create_dataset("label_weights", stored, hdf5::Extents{tokens});
  const SpoolReader source(weight_spool_path);
  std::vector<float> weights;
  std::vector<std::uint8_t> whole;
  std::vector<std::uint64_t> hashes;
  for (std::int64_t at = 0; at < tokens; at += block_tokens) {
    weights.resize(static_cast<std::size_t>(std::min(block_tokens, tokens - at)));
    source.read(std::as_writable_bytes(std::span(weights)));
    whole.assign(weights.begin(), bytes_hold_weights ? weights.end() : weights.begin());
    const auto bytes =
        bytes_hold_weights ? std::as_bytes(std::span(whole)) : std::as_bytes(std::span(weights));
    hashes.push_back(xxh3_64(bytes));
    dataset.write_bytes(hdf5::Extents{at}, hdf5::Extents{std::ssize(weights)}, stored, bytes);
  }
  file.write<std::uint64_t>("label_weight_hashes", {std::ssize(hashes)}, hashes);
}

void CorpusWriter::State::write_file() {
  hdf5::File file = hdf5::File::create(partial_path);
  file.set_attribute("format_version", kCorpusFormatVersion);
  file.set_attribute("vocabulary_size", vocabulary_size);
  file.set_attribute("tokenizer", tokenizer);
  file.set_attribute("block_tokens", block_tokens);
  file.set_attribute("unigram_entropy", counts.entropy());
  file.set_attribute("requires", weight_spool ? "label_weights" : "");
  file.set_attribute("documents_hash", hex64(xxh3_64(std::as_bytes(std::span(documents)))));
  file.write<std::int64_t>("documents", {std::ssize(documents)}, documents);
  file.write<std::uint64_t>("block_hashes", {std::ssize(block_hashes)}, block_hashes);
  copy_tokens(file);
  if (weight_spool) copy_weights(file);
  file.close();
}

void CorpusWriter::finish() {
  State& state = *state_;
  if (state.documents.back() != state.tokens) {
    fail(ExitCode::internal, state.output.named().string(), ": the last document was not ended");
  }
  state.flush_block();
  state.spool.close();
  if (state.weight_spool) state.weight_spool->close();
  try {
    state.write_file();
    // Reads what was written: a swallowed write error must not survive under the final name.
    sync_and_drop_cache(state.partial_path);
    Corpus::open(state.partial_path).verify();
  } catch (const Error& error) {
    // Not everything that fails on a full disk says so: pages may only be missing when they are
    // read.
    const auto free = free_bytes(state.partial_path.parent_path());
    if (!says_no_space(error.what()) && (!free || *free >= kFullBytes)) throw;
    fail(ExitCode::io, "no space left for ", state.output.named().string(), ": ", error.what());
  }
  state.output.publish(state.partial_path);
}

void add_unigram_entropy(const std::filesystem::path& path) {
  const Corpus old = Corpus::open(path);
  if (old.info().unigram_entropy) return;
  CorpusWriter writer(path, old.info());
  std::vector<std::int32_t> ids;
  const auto offsets = old.documents();
  for (std::size_t document = 1; document < offsets.size(); ++document) {
    for (std::int64_t at = offsets[document - 1]; at < offsets[document]; at += std::ssize(ids)) {
      ids.resize(static_cast<std::size_t>(std::min(kCopyTokens, offsets[document] - at)));
      old.read(at, ids);
      writer.append(ids);
    }
    writer.end_document();
  }
  writer.finish();
  const std::string digest = Corpus::open(path).digest();
  LONGHAUL_CHECK(digest == old.digest(), path.string(), ": the digest became ", digest, "; it was ",
                 old.digest());
}

}  // namespace longhaul::runtime

#include "runtime/io/corpus.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <sstream>
#include <system_error>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "runtime/io/unigram_impl.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kPieceTokens = std::int64_t{1} << 16;
constexpr double kEntropyError = 1e-9;  // nats; sums and logarithms differ by less anywhere

/// A whole file, read-only, in memory by mapping.
class Mapping {
 public:
  Mapping(const std::filesystem::path& path) {
    const FileHandle file = FileHandle::read(path);
    bytes_ = static_cast<std::size_t>(file.size());
    void* data = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (data == MAP_FAILED) {
      fail(ExitCode::io, path.string(), ": cannot map ", bytes_,
           " bytes: ", std::generic_category().message(errno));
    }
    data_ = static_cast<const std::byte*>(data);
  }
  ~Mapping() { ::munmap(const_cast<std::byte*>(data_), bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  /// Checked by DatasetInfo against the file's length when the dataset was opened.
  std::span<const std::byte> of(const hdf5::DatasetInfo& info) const {
    if (info.bytes == 0) return {};
    LONGHAUL_CHECK(static_cast<std::size_t>(info.file_offset + info.bytes) <= bytes_,
                   "the file became shorter while it was opened");
    return {data_ + info.file_offset, static_cast<std::size_t>(info.bytes)};
  }

 private:
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Widens every stride-th of packed ids; memcpy, because other writers may not align their
/// datasets.
template <class T>
void widen(const std::byte* from, std::size_t stride, std::span<std::int32_t> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * stride * sizeof(T), sizeof(T));
    to[i] = static_cast<std::int32_t>(value);
  }
}

void widen(hdf5::Element element, const std::byte* from, std::size_t stride,
           std::span<std::int32_t> to) {
  switch (element) {
    case hdf5::Element::uint8:
      return widen<std::uint8_t>(from, stride, to);
    case hdf5::Element::uint16:
      return widen<std::uint16_t>(from, stride, to);
    default:
      return widen<std::uint32_t>(from, stride, to);
  }
}

hdf5::Dataset contiguous(const hdf5::File& file, const std::string& name, hdf5::Element element) {
  hdf5::Dataset dataset = file.dataset(name, element, 1);
  if (!dataset.info().contiguous) {
    fail(ExitCode::data, file.path().string(), ": dataset '", name,
         "': is chunked; a corpus is contiguous, so that it can be mapped (h5repack -l CONTI)");
  }
  return dataset;
}

std::int64_t positive_attribute(const hdf5::File& file, const std::string& name,
                                std::int64_t most) {
  const std::int64_t value = file.int64_attribute(name);
  if (value < 1 || value > most) {
    fail(ExitCode::data, file.path().string(), ": attribute '", name, "' is ", value,
         "; expected 1 to ", most);
  }
  return value;
}

/// What a reader has to know is listed by name, so that a later format can say what this build
/// would misread. It knows nothing beyond the format itself.
void check_requirements(const hdf5::File& file) {
  std::istringstream names(file.string_attribute("requires"));
  for (std::string name; std::getline(names, name, ',');) {
    fail(ExitCode::data, file.path().string(), ": attribute 'requires' names '", name,
         "', which this build does not know: use a build that does, or tokenize the corpus again");
  }
}

double stored_entropy(const hdf5::File& file, std::int64_t vocabulary_size) {
  const double entropy = file.float64_attribute("unigram_entropy");
  const double most = std::log(static_cast<double>(vocabulary_size)) + kEntropyError;
  if (!(entropy >= 0 && entropy <= most)) {
    fail(ExitCode::data, file.path().string(), ": attribute 'unigram_entropy' is ", entropy,
         " nats; a vocabulary of ", vocabulary_size, " allows 0 to ", most);
  }
  return entropy;
}

CorpusInfo read_info(const hdf5::File& file) {
  CorpusInfo info;
  info.path = file.path();
  info.format_version = file.int64_attribute("format_version");
  if (info.format_version < 1 || info.format_version > kCorpusFormatVersion) {
    fail(ExitCode::data, info.path.string(), ": attribute 'format_version' is ",
         info.format_version, "; this build reads versions 1 to ", kCorpusFormatVersion,
         ": tokenize the corpus again");
  }
  if (info.format_version >= 2) check_requirements(file);
  info.vocabulary_size = positive_attribute(file, "vocabulary_size", kMaxVocabulary);
  info.tokenizer = file.string_attribute("tokenizer");
  info.block_tokens = positive_attribute(file, "block_tokens", std::int64_t{1} << 40);
  if (info.format_version >= 2) info.unigram_entropy = stored_entropy(file, info.vocabulary_size);
  const hdf5::Dataset tokens = file.dataset("tokens");
  info.token_element = tokens.info().element;
  if (info.token_element != hdf5::Element::uint8 && info.token_element != hdf5::Element::uint16 &&
      info.token_element != hdf5::Element::uint32) {
    fail(ExitCode::data, info.path.string(), ": dataset 'tokens': holds ",
         hdf5::name(info.token_element), "; expected uint8, uint16 or uint32");
  }
  info.tokens = contiguous(file, "tokens", info.token_element).info().elements;
  info.documents = contiguous(file, "documents", hdf5::Element::int64).info().elements - 1;
  return info;
}

void check_offsets(const CorpusInfo& info, std::span<const std::int64_t> offsets) {
  const auto bad = [&](std::size_t index, const auto&... why) {
    fail(ExitCode::data, info.path.string(), ": dataset 'documents': index ", index, " is ",
         offsets[index], "; ", why...);
  };
  if (offsets.empty()) {
    fail(ExitCode::data, info.path.string(),
         ": dataset 'documents': is empty; expected offsets from 0 to the token count");
  }
  if (offsets.front() != 0) bad(0, "expected 0");
  for (std::size_t index = 1; index < offsets.size(); ++index) {
    if (offsets[index] < offsets[index - 1]) {
      bad(index, "less than index ", index - 1, ", which is ", offsets[index - 1]);
    }
  }
  if (offsets.back() != info.tokens) {
    bad(offsets.size() - 1, "expected the token count, ", info.tokens);
  }
}

}  // namespace

struct Corpus::State {
  CorpusInfo info;
  std::unique_ptr<Mapping> mapping;
  std::span<const std::byte> tokens;
  std::vector<std::int64_t> copied_documents;  // only when the mapped ones are not aligned
  std::span<const std::int64_t> documents;
  std::vector<std::uint64_t> block_hashes;
  std::string documents_hash;
  mutable std::vector<std::atomic<bool>> checked;

  void map(const hdf5::File& file);
  void check_block(std::int64_t block) const;
};

void Corpus::State::map(const hdf5::File& file) {
  mapping = std::make_unique<Mapping>(info.path);
  tokens = mapping->of(file.dataset("tokens").info());
  const auto bytes = mapping->of(file.dataset("documents").info());
  const auto count = static_cast<std::size_t>(info.documents + 1);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(std::int64_t) == 0) {
    documents = {reinterpret_cast<const std::int64_t*>(bytes.data()), count};
  } else {
    copied_documents.resize(count);
    std::memcpy(copied_documents.data(), bytes.data(), bytes.size());
    documents = copied_documents;
  }
}

void Corpus::State::check_block(std::int64_t block) const {
  const std::int64_t begin = block * info.block_tokens;
  const std::int64_t count = std::min(info.block_tokens, info.tokens - begin);
  const std::int64_t width = size_bytes(info.token_element);
  const auto bytes = tokens.subspan(static_cast<std::size_t>(begin * width),
                                    static_cast<std::size_t>(count * width));
  std::vector<std::int32_t> ids;
  for (std::int64_t at = 0; at < count; at += kPieceTokens) {
    ids.resize(static_cast<std::size_t>(std::min(kPieceTokens, count - at)));
    widen(info.token_element, bytes.data() + at * width, 1, ids);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t id = static_cast<std::uint32_t>(ids[i]);
      if (id >= info.vocabulary_size) {
        fail(ExitCode::data, info.path.string(), ": dataset 'tokens': index ",
             begin + at + static_cast<std::int64_t>(i), " is ", id, ", outside the vocabulary of ",
             info.vocabulary_size);
      }
    }
  }
  const std::uint64_t expected = block_hashes[static_cast<std::size_t>(block)];
  if (const std::uint64_t hash = xxh3_64(bytes); hash != expected) {
    fail(ExitCode::data, info.path.string(), ": dataset 'tokens': indices ", begin, " to ",
         begin + count - 1, " hash to ", hex64(hash), "; 'block_hashes' index ", block, " is ",
         hex64(expected), ": the file is damaged, tokenize the corpus again");
  }
  checked[static_cast<std::size_t>(block)] = true;
}

Corpus::Corpus(std::unique_ptr<State> state) : state_(std::move(state)) {}
Corpus::Corpus(Corpus&&) noexcept = default;
Corpus& Corpus::operator=(Corpus&&) noexcept = default;
Corpus::~Corpus() = default;

Corpus Corpus::open(const std::filesystem::path& path) {
  auto state = std::make_unique<State>();
  const hdf5::File file = hdf5::File::open(path);
  state->info = read_info(file);
  const CorpusInfo& info = state->info;
  state->block_hashes =
      contiguous(file, "block_hashes", hdf5::Element::uint64).read<std::uint64_t>();
  const std::int64_t blocks =
      info.tokens / info.block_tokens + (info.tokens % info.block_tokens != 0);
  if (std::ssize(state->block_hashes) != blocks) {
    fail(ExitCode::data, path.string(), ": dataset 'block_hashes': holds ",
         state->block_hashes.size(), " hashes; ", info.tokens, " tokens in blocks of ",
         info.block_tokens, " need ", blocks);
  }
  state->checked = std::vector<std::atomic<bool>>(state->block_hashes.size());
  state->map(file);
  check_offsets(info, state->documents);
  state->documents_hash = hex64(xxh3_64(std::as_bytes(state->documents)));
  if (const std::string expected = file.string_attribute("documents_hash");
      expected != state->documents_hash) {
    fail(ExitCode::data, path.string(), ": dataset 'documents': indices 0 to ", info.documents,
         " hash to ", state->documents_hash, "; attribute 'documents_hash' is ", expected,
         ": the file is damaged, tokenize the corpus again");
  }
  return Corpus(std::move(state));
}

const CorpusInfo& Corpus::info() const { return state_->info; }
std::span<const std::int64_t> Corpus::documents() const { return state_->documents; }

void Corpus::read(std::int64_t begin, std::span<std::int32_t> out, std::int64_t stride) const {
  const CorpusInfo& info = state_->info;
  const std::int64_t count = std::ssize(out);
  LONGHAUL_CHECK(stride >= 1 && begin >= 0 && begin <= info.tokens &&
                     (count == 0 || count - 1 <= (info.tokens - 1 - begin) / stride),
                 info.path.string(), ": tokens ", begin, " to ", begin + count * stride, " of ",
                 info.tokens);
  if (out.empty()) return;
  for (std::int64_t i = 0; i < count;) {  // the first token of each block that holds one
    const std::int64_t block = (begin + i * stride) / info.block_tokens;
    if (!state_->checked[static_cast<std::size_t>(block)]) state_->check_block(block);
    i = ((block + 1) * info.block_tokens - begin + stride - 1) / stride;
  }
  widen(info.token_element, state_->tokens.data() + begin * size_bytes(info.token_element),
        static_cast<std::size_t>(stride), out);
}

void Corpus::verify() const {
  for (std::int64_t block = 0; block < std::ssize(state_->block_hashes); ++block) {
    state_->check_block(block);
  }
  if (!info().unigram_entropy) return;
  if (const double measured = measure_unigram_entropy();
      !(std::abs(measured - *info().unigram_entropy) <= kEntropyError)) {
    fail(ExitCode::data, info().path.string(), ": attribute 'unigram_entropy' is ",
         *info().unigram_entropy, " nats; the tokens have ", measured,
         ": tokenize the corpus again");
  }
}

std::string Corpus::digest() const {
  Digest digest;
  const CorpusInfo& info = state_->info;
  digest.update(concat("longhaul corpus 1\n", info.tokens, '\n', info.documents, '\n',
                       info.vocabulary_size, '\n', info.block_tokens, '\n',
                       hdf5::name(info.token_element), '\n', info.tokenizer, '\n',
                       state_->documents_hash, '\n'));
  digest.update(std::as_bytes(std::span(state_->block_hashes)));
  return digest.hex();
}

double Corpus::measure_unigram_entropy() const {
  const CorpusInfo& info = state_->info;
  UnigramCounts counts(info.vocabulary_size);
  std::vector<std::int32_t> ids;
  for (std::int64_t at = 0; at < info.tokens; at += kPieceTokens) {
    ids.resize(static_cast<std::size_t>(std::min(kPieceTokens, info.tokens - at)));
    read(at, ids);
    counts.add(ids);
  }
  return counts.entropy();
}

}  // namespace longhaul::runtime

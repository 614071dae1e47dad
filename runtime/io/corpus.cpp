#include "runtime/io/corpus.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <sstream>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/hash.h"
#include "runtime/io/mapping.h"
#include "runtime/io/unigram_impl.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kPieceTokens = std::int64_t{1} << 16;
constexpr double kEntropyError = 1e-9;  // nats; sums and logarithms differ by less anywhere

/// Widens every stride-th of packed values; memcpy, because other writers may not align their
/// datasets.
template <class From, class To>
void widen(const std::byte* from, std::size_t stride, std::span<To> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    From value;
    std::memcpy(&value, from + i * stride * sizeof(From), sizeof(From));
    to[i] = static_cast<To>(value);
  }
}

void widen(hdf5::Element element, const std::byte* from, std::size_t stride,
           std::span<std::int32_t> ids) {
  switch (element) {
    case hdf5::Element::uint8:
      return widen<std::uint8_t>(from, stride, ids);
    case hdf5::Element::uint16:
      return widen<std::uint16_t>(from, stride, ids);
    default:
      return widen<std::uint32_t>(from, stride, ids);
  }
}

void widen(hdf5::Element element, const std::byte* from, std::size_t stride,
           std::span<float> weights) {
  if (element == hdf5::Element::uint8) return widen<std::uint8_t>(from, stride, weights);
  widen<float>(from, stride, weights);
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
/// would misread. Returns whether the corpus has label weights, the one name that it knows.
bool check_requirements(const hdf5::File& file) {
  bool label_weights = false;
  std::istringstream names(file.string_attribute("requires"));
  for (std::string name; std::getline(names, name, ',');) {
    label_weights |= name == "label_weights";
    if (name == "label_weights") continue;
    fail(ExitCode::data, file.path().string(), ": attribute 'requires' names '", name,
         "', which this build does not know: use a build that does, or tokenize the corpus again");
  }
  return label_weights;
}

hdf5::Element weight_element(const hdf5::File& file) {
  const hdf5::Element element = file.dataset("label_weights").info().element;
  if (element != hdf5::Element::uint8 && element != hdf5::Element::float32) {
    fail(ExitCode::data, file.path().string(), ": dataset 'label_weights': holds ",
         hdf5::name(element), "; expected uint8 or float32");
  }
  return element;
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
  const bool weighs = info.format_version >= 2 && check_requirements(file);
  if (weighs) {
    info.label_weights = weight_element(file);
  } else if (file.has("label_weights")) {
    fail(ExitCode::data, info.path.string(),
         ": dataset 'label_weights': attribute 'requires' does not name it, so that an older build "
         "would train on what it weighs 0: name it there, in a corpus of format version 2");
  }
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

namespace {

/// A dataset of a value a token, mapped, under a hash a block.
struct Column {
  std::string name, hashes_name;
  hdf5::Element element = hdf5::Element::uint8;
  std::span<const std::byte> bytes;
  std::vector<std::uint64_t> hashes;
  mutable std::vector<std::atomic<bool>> checked;  // of each block

  /// Every stride-th value from `begin` on; T: int32 for tokens, float for weights.
  template <class T>
  void read(std::int64_t begin, std::int64_t stride, std::span<T> out) const {
    widen(element, bytes.data() + begin * size_bytes(element), static_cast<std::size_t>(stride),
          out);
  }
};

/// Throws unless the values from `begin` on are what their dataset may hold.
void check_values(const CorpusInfo& info, std::int64_t begin, std::span<const std::int32_t> ids) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::int64_t id = static_cast<std::uint32_t>(ids[i]);
    if (id < info.vocabulary_size) continue;
    fail(ExitCode::data, info.path.string(), ": dataset 'tokens': index ",
         begin + static_cast<std::int64_t>(i), " is ", id, ", outside the vocabulary of ",
         info.vocabulary_size);
  }
}
void check_values(const CorpusInfo& info, std::int64_t begin, std::span<const float> weights) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= 0 && std::isfinite(weights[i])) continue;
    fail(ExitCode::data, info.path.string(), ": dataset 'label_weights': index ",
         begin + static_cast<std::int64_t>(i), " is ", weights[i],
         "; expected a finite weight of at least 0");
  }
}

}  // namespace

struct Corpus::State {
  CorpusInfo info;
  std::unique_ptr<Mapping> mapping;
  std::vector<std::int64_t> copied_documents;  // only when the mapped ones are not aligned
  std::span<const std::int64_t> documents;
  std::string documents_hash;
  Column tokens;                  // read as int32
  std::optional<Column> weights;  // read as float

  std::span<const std::byte> mapped(const hdf5::DatasetInfo& dataset) const;
  void map_documents(const hdf5::File& file);
  void open_column(const hdf5::File& file, hdf5::Element element, Column& column) const;
  void check_documents() const;
  template <class T>
  void check_block(const Column& column, std::int64_t block) const;
  template <class T>
  void read(const Column& column, std::int64_t begin, std::span<T> out, std::int64_t stride) const;
};

/// Checked by DatasetInfo against the file's length when the dataset was opened.
std::span<const std::byte> Corpus::State::mapped(const hdf5::DatasetInfo& dataset) const {
  if (dataset.bytes == 0) return {};
  const auto end = static_cast<std::size_t>(dataset.file_offset + dataset.bytes);
  if (end > mapping->bytes().size())
    fail(ExitCode::data, info.path.string(), ": became shorter while it was opened");
  return mapping->bytes().subspan(static_cast<std::size_t>(dataset.file_offset),
                                  static_cast<std::size_t>(dataset.bytes));
}

void Corpus::State::map_documents(const hdf5::File& file) {
  const auto bytes = mapped(file.dataset("documents").info());
  const auto count = static_cast<std::size_t>(info.documents + 1);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(std::int64_t) == 0) {
    documents = {reinterpret_cast<const std::int64_t*>(bytes.data()), count};
  } else {
    copied_documents.resize(count);
    std::memcpy(copied_documents.data(), bytes.data(), bytes.size());
    documents = copied_documents;
  }
}

void Corpus::State::open_column(const hdf5::File& file, hdf5::Element element,
                                Column& column) const {
  const hdf5::DatasetInfo values = contiguous(file, column.name, element).info();
  if (values.elements != info.tokens) {
    fail(ExitCode::data, info.path.string(), ": dataset '", column.name, "': holds ",
         values.elements, " values; expected one a token, ", info.tokens);
  }
  column.element = element;
  column.bytes = mapped(values);
  column.hashes = contiguous(file, column.hashes_name, hdf5::Element::uint64).read<std::uint64_t>();
  const std::int64_t blocks =
      info.tokens / info.block_tokens + (info.tokens % info.block_tokens != 0);
  if (std::ssize(column.hashes) != blocks) {
    fail(ExitCode::data, info.path.string(), ": dataset '", column.hashes_name, "': holds ",
         column.hashes.size(), " hashes; ", info.tokens, " tokens in blocks of ", info.block_tokens,
         " need ", blocks);
  }
  column.checked = std::vector<std::atomic<bool>>(column.hashes.size());
}

void Corpus::State::check_documents() const {
  const std::string hash = hex64(xxh3_64(std::as_bytes(documents)));
  mapping->require();
  if (hash != documents_hash) {
    fail(ExitCode::data, info.path.string(), ": dataset 'documents': indices 0 to ", info.documents,
         " hash to ", hash, "; attribute 'documents_hash' is ", documents_hash,
         ": the file is damaged, tokenize the corpus again");
  }
}

template <class T>
void Corpus::State::check_block(const Column& column, std::int64_t block) const {
  const std::int64_t begin = block * info.block_tokens;
  const std::int64_t count = std::min(info.block_tokens, info.tokens - begin);
  const std::int64_t width = size_bytes(column.element);
  std::vector<T> values;
  for (std::int64_t at = 0; at < count; at += kPieceTokens) {
    values.resize(static_cast<std::size_t>(std::min(kPieceTokens, count - at)));
    column.read<T>(begin + at, 1, values);
    mapping->require();
    check_values(info, begin + at, std::span<const T>(values));
  }
  const std::uint64_t expected = column.hashes[static_cast<std::size_t>(block)];
  const std::uint64_t hash = xxh3_64(column.bytes.subspan(static_cast<std::size_t>(begin * width),
                                                          static_cast<std::size_t>(count * width)));
  mapping->require();
  if (hash != expected) {
    fail(ExitCode::data, info.path.string(), ": dataset '", column.name, "': indices ", begin,
         " to ", begin + count - 1, " hash to ", hex64(hash), "; '", column.hashes_name, "' index ",
         block, " is ", hex64(expected), ": the file is damaged, tokenize the corpus again");
  }
  column.checked[static_cast<std::size_t>(block)] = true;
}

template <class T>
void Corpus::State::read(const Column& column, std::int64_t begin, std::span<T> out,
                         std::int64_t stride) const {
  const std::int64_t count = std::ssize(out);
  LONGHAUL_CHECK(stride >= 1 && begin >= 0 && begin <= info.tokens &&
                     (count == 0 || count - 1 <= (info.tokens - 1 - begin) / stride),
                 info.path.string(), ": ", column.name, " ", begin, " to ", begin + count * stride,
                 " of ", info.tokens);
  if (out.empty()) return;
  for (std::int64_t i = 0; i < count;) {  // the first value of each block that holds one
    const std::int64_t block = (begin + i * stride) / info.block_tokens;
    if (!column.checked[static_cast<std::size_t>(block)]) check_block<T>(column, block);
    i = ((block + 1) * info.block_tokens - begin + stride - 1) / stride;
  }
  column.read(begin, stride, out);
  mapping->require();
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
  state->mapping = std::make_unique<Mapping>(info.path);
  state->tokens.name = "tokens";
  state->tokens.hashes_name = "block_hashes";
  state->open_column(file, info.token_element, state->tokens);
  if (info.label_weights) {
    state->weights.emplace();
    state->weights->name = "label_weights";
    state->weights->hashes_name = "label_weight_hashes";
    state->open_column(file, *info.label_weights, *state->weights);
  }
  state->map_documents(file);
  check_offsets(info, state->documents);
  state->documents_hash = file.string_attribute("documents_hash");
  state->check_documents();
  return Corpus(std::move(state));
}

const CorpusInfo& Corpus::info() const { return state_->info; }
std::span<const std::int64_t> Corpus::documents() const { return state_->documents; }

void Corpus::read(std::int64_t begin, std::span<std::int32_t> out, std::int64_t stride) const {
  state_->read(state_->tokens, begin, out, stride);
}

void Corpus::read_label_weights(std::int64_t begin, std::span<float> out,
                                std::int64_t stride) const {
  LONGHAUL_CHECK(state_->weights.has_value(), info().path.string(), " has no label weights");
  state_->read(*state_->weights, begin, out, stride);
}

void Corpus::require_unchanged() const {
  state_->mapping->require_whole();
  if (!state_->mapping->written()) return;
  state_->check_documents();
  for (std::int64_t block = 0; block < std::ssize(state_->tokens.hashes); ++block) {
    const auto index = static_cast<std::size_t>(block);
    if (state_->tokens.checked[index]) state_->check_block<std::int32_t>(state_->tokens, block);
    if (state_->weights && state_->weights->checked[index])
      state_->check_block<float>(*state_->weights, block);
  }
}

void Corpus::verify() const {
  for (std::int64_t block = 0; block < std::ssize(state_->tokens.hashes); ++block) {
    state_->check_block<std::int32_t>(state_->tokens, block);
    if (state_->weights) state_->check_block<float>(*state_->weights, block);
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
  digest.update(std::as_bytes(std::span(state_->tokens.hashes)));
  if (const auto& weights = state_->weights) {
    digest.update(concat(weights->name, ' ', hdf5::name(weights->element), '\n'));
    digest.update(std::as_bytes(std::span(weights->hashes)));
  }
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

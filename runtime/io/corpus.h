#pragma once
// Tokenized corpora: one HDF5 file of packed tokens and document offsets (format:
// runtime/io/README.md).

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/io/hdf5.h"
#include "runtime/io/output_file.h"

namespace longhaul::runtime {

constexpr std::int64_t kCorpusFormatVersion = 2;  ///< what is written; 1 is read too
/// Token ids are int32 in memory.
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 31;

struct CorpusInfo {
  std::filesystem::path path;
  std::int64_t format_version = kCorpusFormatVersion;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::int64_t vocabulary_size = 0;
  std::string tokenizer;  ///< "bytes", or as runtime/io/tokenizer.h names it
  hdf5::Element token_element = hdf5::Element::uint8;
  std::int64_t block_tokens = 0;  ///< tokens under one hash
  /// uint8 or float32: a weight a token. Absent: every label weighs 1.
  std::optional<hdf5::Element> label_weights;
  /// Entropy of single tokens over the whole corpus, in nats: the loss of a model that knows
  /// frequencies only. 0 for an empty corpus; absent in version 1.
  std::optional<double> unigram_entropy;
};

/// Writes a corpus document by document. Nothing appears under `path` before finish(); an
/// unfinished writer leaves nothing behind. Tokens pass through a file beside the output, because
/// their number has to be known before a contiguous dataset can be made. Throws: Error(io) when
/// writing fails, Error(data) for a token id outside the vocabulary.
class CorpusWriter {
 public:
  CorpusWriter(const std::filesystem::path& path, std::int64_t vocabulary_size,
               std::string tokenizer, Existing existing = Existing::replace);
  /// A corpus of the vocabulary, tokenizer, token type and block size of another one.
  CorpusWriter(const std::filesystem::path& path, const CorpusInfo& like);
  ~CorpusWriter();
  CorpusWriter(const CorpusWriter&) = delete;
  CorpusWriter& operator=(const CorpusWriter&) = delete;

  /// Adds to the document at hand. `weights`: what predicting each token weighs in the loss, finite
  /// and not negative; empty: 1 each. A corpus whose weights are all 1 stores none; it stores them
  /// as uint8 where all are whole numbers up to 255, else as float32.
  void append(std::span<const std::int32_t> tokens, std::span<const float> weights = {});
  /// Ends the document at hand, which may be empty.
  void end_document();
  /// Ends no document by itself. Writes, syncs and renames.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An open corpus, memory-mapped. Opening checks everything but the tokens: format, types, sizes,
/// offsets and their hash; so it costs what reading 8 bytes a document costs, and nothing for
/// tokens. Tokens and label weights are checked block by block when first read: ids against the
/// vocabulary, weights for being finite and not negative, then the block's hash. A file that is
/// changed while it is open is found and refused (require_unchanged). Thread-safe.
/// Throws: Error(data) naming file, dataset and index; Error(io) when the file cannot be opened.
class Corpus {
 public:
  static Corpus open(const std::filesystem::path& path);
  Corpus(Corpus&&) noexcept;
  Corpus& operator=(Corpus&&) noexcept;
  ~Corpus();

  const CorpusInfo& info() const;
  /// documents + 1 token offsets, from 0 to the token count.
  std::span<const std::int64_t> documents() const;
  /// Copies tokens begin, begin + stride, ...: out.size() of them. Only blocks that hold one are
  /// checked.
  void read(std::int64_t begin, std::span<std::int32_t> out, std::int64_t stride = 1) const;
  /// Copies the label weights of those tokens: label_weights[t] weighs the loss of predicting token
  /// t. Only for a corpus that has them.
  void read_label_weights(std::int64_t begin, std::span<float> out, std::int64_t stride = 1) const;
  /// Throws Error(data) when the file has become shorter than it was, whatever was read of it; when
  /// somebody has written to it, checks again all that was checked before. Asks the file system.
  /// What was read counts once this has returned, offsets taken from documents() too.
  void require_unchanged() const;
  /// Checks every token, weight and the stored entropy, reading the whole file.
  void verify() const;
  /// 32 hex digits over everything that a reader sees; tokens and label weights enter through their
  /// block hashes, so this is cheap. Equal on all ranks when they read equal corpora. The entropy,
  /// which follows from the tokens, is not in it: a corpus keeps its digest when it is added.
  std::string digest() const;
  /// CorpusInfo::unigram_entropy made anew from all tokens, reading the whole file.
  double measure_unigram_entropy() const;

 private:
  struct State;
  explicit Corpus(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Brings a corpus of version 1 to version 2, which stores its entropy. The new file is written
/// beside the old one, read back and renamed over it: whoever has the old one open keeps it, and
/// whatever fails leaves it as it was. Needs room for the tokens twice. The digest stays. Does
/// nothing to a corpus that stores its entropy. Throws: as Corpus and CorpusWriter.
void add_unigram_entropy(const std::filesystem::path& path);

}  // namespace longhaul::runtime

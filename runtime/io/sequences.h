#pragma once
// Training order: which tokens make up sequence number n, without any state.
//
// Documents are packed end to end. One epoch cuts the corpus into ceil(tokens / seq_len) sequences;
// the last one wraps round to the corpus's beginning, so no token is dropped and every sequence is
// whole. Within an epoch the sequences come in an order that is a keyed permutation of their
// numbers.

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/io/corpus.h"
#include "runtime/run.h"

namespace longhaul::runtime {

/// Bijection of [0, size) chosen by (seed, epoch): a balanced Feistel network over Philox4x32-10
/// (Salmon et al. 2011), walked along its cycle until it lands in range (Black and Rogaway 2002).
class KeyedPermutation {
 public:
  KeyedPermutation(std::int64_t size, std::uint64_t seed, std::uint64_t epoch);
  std::int64_t operator()(std::int64_t position) const;

 private:
  std::int64_t size_;
  std::uint64_t seed_, epoch_;
  int half_bits_;
};

/// Rows of sequences as a model takes them: a value each, in the order in which they were asked
/// for.
struct Rows {
  std::vector<std::int32_t> tokens;
  /// The next token of the same document, or -1: at a document's last token, and where the
  /// sequence's end cuts a document.
  std::vector<std::int32_t> labels;
  /// Distance from the document's first token in this sequence.
  std::vector<std::int32_t> positions;
};

/// The sequences of a run by their numbers, from 0: pure functions of the number, the same on every
/// rank. Which documents a sequence packs is cheap to know of any sequence; tokens are read only
/// where they are rows. Thread-safe.
class SequenceSource {
 public:
  virtual ~SequenceSource() = default;
  /// Document offsets from 0 to the sequence's length, strictly increasing. Reads no token.
  virtual std::vector<std::int64_t> documents(std::int64_t number) const = 0;
  /// Appends the rows that `runs` name by their index in the sequence. Throws what reading throws.
  virtual void read(std::int64_t number, std::span<const Run> runs, Rows& rows) const = 0;
};

/// An endless run over a corpus: sequence number n is in epoch n / per_epoch(), at position
/// n % per_epoch() of its permuted order. A document that a sequence's border cuts goes on in the
/// next sequence as a document of its own. A pure function of (corpus, seq_len, seed, number).
class Sequences final : public SequenceSource {
 public:
  /// The corpus must outlive this. Throws Error(config) if it holds fewer than seq_len tokens.
  Sequences(const Corpus& corpus, std::int64_t seq_len, std::uint64_t seed);

  /// The sequences of another corpus by the same rules, but in its own order: number n begins at
  /// token seq_len * (n % per_epoch()). Throws as the constructor.
  Sequences in_order(const Corpus& corpus) const;

  std::int64_t per_epoch() const { return per_epoch_; }
  /// First corpus token of the sequence.
  std::int64_t first_token(std::int64_t number) const;
  std::vector<std::int64_t> documents(std::int64_t number) const override;
  /// Reads the tokens of the rows, and of each row with a label the next one. Throws Error(data)
  /// for damaged tokens, as Corpus::read.
  void read(std::int64_t number, std::span<const Run> runs, Rows& rows) const override;

 private:
  const Corpus* corpus_;
  std::int64_t seq_len_, per_epoch_;
  std::uint64_t seed_;
  bool permuted_ = true;
};

}  // namespace longhaul::runtime

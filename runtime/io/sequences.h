#pragma once
// Training order: which tokens make up sequence number n, without any state.
//
// Documents are packed end to end. One epoch cuts the corpus into ceil(tokens / seq_len) sequences;
// the last one wraps round to the corpus's beginning, so no token is dropped and every sequence is
// whole. Within an epoch the sequences come in an order that is a keyed permutation of their
// numbers.

#include <cstdint>
#include <optional>
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

/// Documents that are a stem and branches: what follows a document's first `stem` tokens is cut
/// every `length` tokens, and each part goes on from the stem alone.
struct Branches {
  std::int64_t stem = 0, length = 1;  ///< tokens; at least 0 and 1
};

/// How the rows of a sequence are numbered and labelled.
struct RowRules {
  /// Positions restart at every document and, in the sequence's first, count from its first token
  /// there; else they are 0 to seq_len - 1.
  bool positions_restart = true;
  /// A document's last token has a label too: the token behind it, of the next document.
  bool labels_cross = false;
  /// A branch's last token has no label. Positions that restart run on from the stem's end in this
  /// sequence in every branch, and from 0 where no stem is in it. Not with labels_cross.
  std::optional<Branches> branches = {};
};

/// Rows of sequences as a model takes them: a value each, in the order in which they were asked
/// for.
struct Rows {
  std::vector<std::int32_t> tokens;
  /// The next token, or -1 where RowRules give none: by default at a document's last token. What a
  /// sequence's end cuts has its label from behind it; the corpus's last token has one only where a
  /// sequence wraps round.
  std::vector<std::int32_t> labels;
  std::vector<std::int32_t> positions;
  /// What each label weighs in the loss, not negative; one of weight 0 counts as none. Empty where
  /// the source has no weights: every label then weighs 1.
  std::vector<float> label_weights;
};

/// What a sequence packs.
struct PackedDocuments {
  /// From 0 to the sequence's length, strictly increasing.
  std::vector<std::int64_t> offsets;
  /// Tokens of the first document that lie before the sequence.
  std::int64_t tokens_before = 0;
};

/// The sequences of a run by their numbers, from 0: pure functions of the number, the same on every
/// rank. Which documents a sequence packs is cheap to know of any sequence; tokens are read only
/// where they are rows. Thread-safe.
class SequenceSource {
 public:
  virtual ~SequenceSource() = default;
  /// Reads no token.
  virtual PackedDocuments documents(std::int64_t number) const = 0;
  /// Appends the rows that `runs` name by their index in the sequence. Throws what reading throws.
  virtual void read(std::int64_t number, std::span<const Run> runs, Rows& rows) const = 0;
};

/// An endless run over a corpus: sequence number n is in epoch n / per_epoch(), at position
/// n % per_epoch() of its permuted order. A pure function of (corpus, seq_len, seed, rules,
/// number).
class Sequences final : public SequenceSource {
 public:
  /// The corpus must outlive this. Throws Error(config) if it holds fewer than seq_len tokens.
  Sequences(const Corpus& corpus, std::int64_t seq_len, std::uint64_t seed,
            const RowRules& rules = {});

  /// The sequences of another corpus by the same rules, but in its own order: number n begins at
  /// token seq_len * (n % per_epoch()). Throws as the constructor.
  Sequences in_order(const Corpus& corpus) const;

  std::int64_t per_epoch() const { return per_epoch_; }
  /// Whether the corpus has label weights.
  bool weighs() const { return corpus_->info().label_weights.has_value(); }
  /// First corpus token of the sequence.
  std::int64_t first_token(std::int64_t number) const;
  PackedDocuments documents(std::int64_t number) const override;
  /// Reads the tokens of the rows, and of each row with a label the next one. Throws Error(data)
  /// for damaged tokens, as Corpus::read.
  void read(std::int64_t number, std::span<const Run> runs, Rows& rows) const override;

 private:
  const Corpus* corpus_;
  std::int64_t seq_len_, per_epoch_;
  std::uint64_t seed_;
  RowRules rules_;
  bool permuted_ = true;
};

}  // namespace longhaul::runtime

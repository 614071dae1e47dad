#pragma once
// Training order: which tokens make up sequence number n, without any state.
//
// Documents are packed end to end. One epoch cuts the corpus into ceil(tokens / seq_len) sequences;
// the last one wraps round to the corpus's beginning, so no token is dropped and every sequence is
// whole. Within an epoch the sequences come in an order that is a keyed permutation of their
// numbers.

#include <cstdint>
#include <vector>

#include "runtime/io/corpus.h"

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

/// One training sequence. All vectors but `documents` hold seq_len values.
struct Sequence {
  std::vector<std::int32_t> tokens;
  /// The next token of the same document, or -1: at a document's last token, and where the
  /// sequence's end cuts a document.
  std::vector<std::int32_t> labels;
  /// Distance from the document's first token in this sequence.
  std::vector<std::int32_t> positions;
  /// Document offsets from 0 to seq_len, strictly increasing. A document that a sequence's border
  /// cuts goes on in the next sequence as a document of its own.
  std::vector<std::int64_t> documents;
};

/// Sequence number `cursor` of an endless run over a corpus: epoch cursor / per_epoch(), position
/// cursor % per_epoch() of the permuted order. A pure function of (corpus, seq_len, seed, cursor).
class Sequences {
 public:
  /// The corpus must outlive this. Throws Error(config) if it holds fewer than seq_len tokens.
  Sequences(const Corpus& corpus, std::int64_t seq_len, std::uint64_t seed);

  std::int64_t per_epoch() const { return per_epoch_; }
  /// First corpus token of the sequence.
  std::int64_t first_token(std::int64_t cursor) const;
  /// Throws Error(data) for damaged tokens, as Corpus::read.
  Sequence read(std::int64_t cursor) const;

 private:
  const Corpus* corpus_;
  std::int64_t seq_len_, per_epoch_;
  std::uint64_t seed_;
};

}  // namespace longhaul::runtime

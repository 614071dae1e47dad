#pragma once
// Whole sequences as raw arrays: what tests make up, and what the rows of a source must be.

#include <functional>
#include <span>

#include "runtime/io/sequences.h"

namespace longhaul::test {

/// All vectors but `documents` hold a value a token; documents are offsets, from 0 to their number.
/// Weights are as in runtime::Rows.
struct RawSequence {
  std::vector<std::int32_t> tokens, labels, positions;
  std::vector<std::int64_t> documents;
  std::int64_t tokens_before = 0;         ///< of the first document
  std::vector<float> label_weights = {};  ///< of the labels; empty: the source has none
};

/// Random tokens in random documents (some of one token, some as long as the sequence), labels
/// shifted inside them; a pure function of (vocabulary, seq_len, number).
RawSequence random_sequence(std::int64_t vocabulary, std::int64_t seq_len, std::int64_t number);

/// The `seq_len` tokens from `begin`, wrapping round, of a corpus that packs documents of these
/// lengths end to end: labels and documents token by token, as attention inside documents has them.
RawSequence packed_sequence(std::span<const std::int32_t> tokens,
                            std::span<const std::int64_t> lengths, std::int64_t begin,
                            std::int64_t seq_len);

/// The sequences of a generator, as a source; any thread may ask.
class RawSequences final : public runtime::SequenceSource {
 public:
  using Generator = std::function<RawSequence(std::int64_t number)>;
  RawSequences(Generator generator) : generator_(std::move(generator)) {}
  runtime::PackedDocuments documents(std::int64_t number) const override;
  void read(std::int64_t number, std::span<const runtime::Run> runs,
            runtime::Rows& rows) const override;

 private:
  const Generator generator_;
};

}  // namespace longhaul::test

#pragma once
// Sequences of random tokens: what a model is timed on where no text is needed.

#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// Sequence after sequence, each of whole documents that are equally long, but for its last one.
/// Every token, and so every row, is a pure function of the sequence's number and of its index.
class RandomSequences final : public runtime::SequenceSource {
 public:
  /// `document_tokens` 0: a sequence is one document. Documents without a stem: rules.branches are
  /// not looked at.
  RandomSequences(std::int64_t vocabulary, std::int64_t seq_len, std::int64_t document_tokens,
                  const runtime::RowRules& rules);

  runtime::PackedDocuments documents(std::int64_t number) const override;
  void read(std::int64_t number, std::span<const runtime::Run> runs,
            runtime::Rows& rows) const override;

 private:
  std::int32_t token(std::int64_t number, std::int64_t index) const;

  std::int64_t vocabulary_, seq_len_, document_;
  runtime::RowRules rules_;
};

}  // namespace longhaul::launch

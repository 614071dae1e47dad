#include "tests/support/raw_sequences.h"

#include <algorithm>
#include <random>

namespace longhaul::test {

RawSequence random_sequence(std::int64_t vocabulary, std::int64_t seq_len, std::int64_t number) {
  std::mt19937_64 random(static_cast<std::uint64_t>(number) * 7919 + 17);
  RawSequence sequence;
  sequence.documents = {0};
  while (sequence.documents.back() < seq_len) {
    const auto kind = random() % 4;
    const std::int64_t length =
        kind == 0 ? 1
                  : static_cast<std::int64_t>(
                        1 + random() % static_cast<std::uint64_t>(kind == 1 ? seq_len : 20));
    sequence.documents.push_back(std::min(seq_len, sequence.documents.back() + length));
  }
  for (std::int64_t i = 0; i < seq_len; ++i) {
    // Half of the tokens follow from the one before: there is something to learn.
    const bool drawn = i == 0 || random() % 2 == 0;
    const std::int64_t token =
        drawn ? static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(vocabulary))
              : (sequence.tokens.back() * 3 + 1) % vocabulary;
    sequence.tokens.push_back(static_cast<std::int32_t>(token));
  }
  for (std::size_t d = 0; d + 1 < sequence.documents.size(); ++d) {
    const std::int64_t begin = sequence.documents[d], end = sequence.documents[d + 1];
    for (std::int64_t i = begin; i < end; ++i) {
      sequence.labels.push_back(i + 1 < end ? sequence.tokens[static_cast<std::size_t>(i + 1)]
                                            : -1);
      sequence.positions.push_back(static_cast<std::int32_t>(i - begin));
    }
  }
  return sequence;
}

RawSequence packed_sequence(std::span<const std::int32_t> tokens,
                            std::span<const std::int64_t> lengths, std::int64_t begin,
                            std::int64_t seq_len) {
  std::vector<int> document_of;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    document_of.insert(document_of.end(), static_cast<std::size_t>(lengths[document]),
                       static_cast<int>(document));
  }
  const auto total = std::ssize(document_of);
  RawSequence sequence;
  for (std::int64_t i = 0; i < seq_len; ++i) {
    const std::int64_t at = (begin + i) % total;
    const auto here = static_cast<std::size_t>(at);
    const bool starts = i == 0 || at == 0 || document_of[here] != document_of[here - 1];
    if (starts) sequence.documents.push_back(i);
    sequence.tokens.push_back(tokens[here]);
    sequence.positions.push_back(starts ? 0 : sequence.positions.back() + 1);
    const bool ends = at + 1 == total || document_of[here] != document_of[here + 1];
    sequence.labels.push_back(ends ? -1 : tokens[here + 1]);
  }
  sequence.documents.push_back(seq_len);
  for (std::int64_t at = begin; at > 0; --at) {
    const auto here = static_cast<std::size_t>(at);
    if (document_of[here - 1] != document_of[here]) break;
    ++sequence.tokens_before;
  }
  return sequence;
}

runtime::PackedDocuments RawSequences::documents(std::int64_t number) const {
  const RawSequence sequence = generator_(number);
  return {sequence.documents, sequence.tokens_before};
}

void RawSequences::read(std::int64_t number, std::span<const runtime::Run> runs,
                        runtime::Rows& rows) const {
  const RawSequence sequence = generator_(number);
  for (const runtime::Run& run : runs) {
    for (std::int64_t i = 0; i < run.count; ++i) {
      const auto at = static_cast<std::size_t>(run[i]);
      rows.tokens.push_back(sequence.tokens.at(at));
      rows.labels.push_back(sequence.labels.at(at));
      rows.positions.push_back(sequence.positions.at(at));
      if (!sequence.label_weights.empty())
        rows.label_weights.push_back(sequence.label_weights.at(at));
    }
  }
}

}  // namespace longhaul::test

#pragma once
// What the README says of documents, positions and labels, for the tokens of one sequence, one by
// one: the oracle of whatever packs, numbers, labels and masks. Knows nothing of pieces, slices or
// runs.

#include <cstdint>
#include <string>
#include <vector>

#include "launch/train_config.h"
#include "tests/support/raw_sequences.h"

namespace longhaul::test {

/// A mask's row in the README's table.
struct DocumentWords {
  bool crosses = false;        ///< attention crosses documents
  std::string auto_positions;  ///< "document" or "sequence"
  bool crossing_labels = false;
  bool answers = false;  ///< labels stay inside answers
};
/// Of a mask by name. Fails the test where the table does not have it, or has it twice.
DocumentWords words_of(const std::string& readme, const std::string& mask);

/// Tokens of documents, end to end.
struct TokenDocuments {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> lengths;  ///< of the documents, some of them 0
};

/// The `seq_len` tokens from `begin`, wrapping round.
class SequenceWords {
 public:
  /// Keeps a reference to `corpus`.
  SequenceWords(const TokenDocuments& corpus, std::int64_t begin, std::int64_t seq_len,
                launch::DataConfig data, DocumentWords words);

  std::int64_t size() const { return static_cast<std::int64_t>(rows_.size()); }
  std::int32_t token(std::int64_t row) const { return at(row).token; }
  std::int32_t label(std::int64_t row) const;  ///< -1: none
  std::int64_t position(std::int64_t row) const;
  bool sees(std::int64_t query, std::int64_t key) const;
  /// Of a sliding layer: whether the key is among the last `window` of those that the query sees.
  bool sees(std::int64_t query, std::int64_t key, std::int64_t window) const;
  bool same_document(std::int64_t a, std::int64_t b) const;

 private:
  struct Row {
    std::int32_t token = 0;
    std::int64_t place = 0;  ///< in the corpus
    std::int64_t round = 0;  ///< times that the corpus began again before it
    std::int64_t document = 0, in_document = 0;
  };
  Row row_of(std::int64_t place) const;
  const Row& at(std::int64_t row) const { return rows_.at(static_cast<std::size_t>(row)); }
  bool in_question(const Row& row) const { return row.in_document < *data_.prefix; }
  std::int64_t answer(const Row& row) const {
    return (row.in_document - *data_.prefix) / *data_.block;
  }
  bool near(std::int64_t query, std::int64_t key) const;
  bool sees_at_all(std::int64_t query, std::int64_t key) const;

  const TokenDocuments& corpus_;
  const launch::DataConfig data_;
  const DocumentWords words_;
  std::vector<Row> rows_;
};

}  // namespace longhaul::test

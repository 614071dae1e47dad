// Random sequences for benchmarks are numbered and labelled as those of a corpus.
#include "launch/random_sequences.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/raw_sequences.h"

namespace longhaul::launch {
namespace {

using runtime::Rows;

Rows all_rows(const RandomSequences& sequences, std::int64_t number, std::int64_t seq_len) {
  Rows rows;
  const runtime::Run all[] = {{0, seq_len}};
  sequences.read(number, all, rows);
  return rows;
}

TEST(RandomSequences, AreLabelledAsPackedDocuments) {
  constexpr std::int64_t kVocabulary = 31;
  for (const auto& [seq_len, document] : {std::pair<std::int64_t, std::int64_t>{1, 0},
                                          {97, 0},
                                          {97, 10},
                                          {97, 1},
                                          {97, 500},
                                          {60, 20}}) {
    const RandomSequences sequences(kVocabulary, seq_len, document, {});
    for (const std::int64_t number : {0, 1, 12'345}) {
      const Rows rows = all_rows(sequences, number, seq_len);
      std::vector<std::int64_t> lengths;
      for (std::int64_t left = seq_len; left > 0; left -= lengths.back())
        lengths.push_back(document == 0 ? left : std::min(document, left));
      const test::RawSequence raw = test::packed_sequence(rows.tokens, lengths, 0, seq_len);
      EXPECT_EQ(rows.labels, raw.labels);
      EXPECT_EQ(rows.positions, raw.positions);
      EXPECT_EQ(sequences.documents(number).offsets, raw.documents);
      EXPECT_TRUE(rows.label_weights.empty());
      for (const std::int32_t token : rows.tokens) {
        EXPECT_GE(token, 0);
        EXPECT_LT(token, kVocabulary);
      }
    }
  }
}

TEST(RandomSequences, RowsDoNotDependOnHowTheyAreRead) {
  const RandomSequences sequences(1000, 97, 13, {});
  const Rows all = all_rows(sequences, 5, 97);
  Rows parts;
  const runtime::Run runs[] = {{3, 4, 1}, {10, 20, 4}, {96, 1, 1}};
  sequences.read(5, runs, parts);
  std::size_t at = 0;
  for (const runtime::Run& run : runs) {
    for (std::int64_t i = 0; i < run.count; ++i, ++at) {
      const auto from = static_cast<std::size_t>(run[i]);
      EXPECT_EQ(parts.tokens[at], all.tokens[from]);
      EXPECT_EQ(parts.labels[at], all.labels[from]);
      EXPECT_EQ(parts.positions[at], all.positions[from]);
    }
  }
  EXPECT_EQ(at, parts.tokens.size());
}

TEST(RandomSequences, TokensVaryAndSequencesDiffer) {
  const RandomSequences sequences(1 << 20, 1000, 0, {});
  const Rows first = all_rows(sequences, 0, 1000), second = all_rows(sequences, 1, 1000);
  std::set<std::int32_t> different(first.tokens.begin(), first.tokens.end());
  different.insert(second.tokens.begin(), second.tokens.end());
  EXPECT_GT(different.size(), 1980u);  // of 2,000 out of a million, about two meet
}

TEST(RandomSequences, RulesOfRowsHold) {
  const RandomSequences across(31, 10, 4, {.positions_restart = false, .labels_cross = true});
  const Rows rows = all_rows(across, 2, 10);
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(rows.positions[i], static_cast<std::int32_t>(i));
    if (i < 9) {
      EXPECT_EQ(rows.labels[i], rows.tokens[i + 1]);
    }
  }
  EXPECT_GE(rows.labels[9], 0);
}

}  // namespace
}  // namespace longhaul::launch

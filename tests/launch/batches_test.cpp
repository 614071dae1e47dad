// A rank's rows are those of the whole sequences that its layout names, and no others are read.
#include "launch/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/raw_sequences.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using parallel::LayoutKind;
using test::RawSequence;
using test::RawSequences;

BatchShape shape(LayoutKind layout, int ranks, int rank) {
  BatchShape shape;
  shape.data.mask = "documents";
  shape.kinds = {{std::nullopt, 1}};
  shape.layout = layout;
  shape.ranks = ranks;
  shape.rank = rank;
  return shape;
}

/// Row by row: token t of the axis is token t % S of its sequence t / S.
void expect_rows(const LocalBatch& batch, const std::vector<RawSequence>& sequences, int rank) {
  const std::size_t seq_len = sequences[0].tokens.size();
  runtime::Rows expected;
  std::int64_t labels = 0;
  for (const std::int64_t token : batch.layout.tokens_of(rank)) {
    const RawSequence& sequence = sequences.at(static_cast<std::size_t>(token) / seq_len);
    const std::size_t at = static_cast<std::size_t>(token) % seq_len;
    expected.tokens.push_back(sequence.tokens[at]);
    expected.labels.push_back(sequence.labels[at]);
    expected.positions.push_back(sequence.positions[at]);
    labels += sequence.labels[at] >= 0 ? 1 : 0;
  }
  EXPECT_EQ(batch.rows.tokens, expected.tokens);
  EXPECT_EQ(batch.rows.labels, expected.labels);
  EXPECT_EQ(batch.rows.positions, expected.positions);
  EXPECT_EQ(batch.local_labels, labels);
}

/// Visits every rank of every layout over 1, 3, 5 and 7 ranks.
template <class Visit>
void over_layouts_and_ranks(const Visit& visit) {
  for (const LayoutKind layout : parallel::layout_kinds()) {
    for (const int ranks : {1, 3, 5, 7}) {
      for (int rank = 0; rank < ranks; ++rank) {
        SCOPED_TRACE(runtime::concat(parallel::name(layout), ", rank ", rank, " of ", ranks));
        visit(layout, ranks, rank);
      }
    }
  }
}

TEST(Batches, OfACorpusHoldTheRowsThatTheLayoutNames) {
  std::mt19937_64 random(11);
  for (const std::int64_t longest : {1, 9, 200}) {  // documents, some of them empty
    std::vector<std::int64_t> lengths;
    std::vector<std::int32_t> tokens;
    while (tokens.size() < 500) {
      lengths.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(longest + 1)));
      for (std::int64_t i = 0; i < lengths.back(); ++i)
        tokens.push_back(static_cast<std::int32_t>(random() % 60000));
    }
    const test::TempDirectory folder;
    test::write_small_blocks(folder / "c.h5", tokens, lengths, 13);
    const runtime::Corpus corpus = runtime::Corpus::open(folder / "c.h5");
    for (const std::int64_t seq_len : {1, 7, 127}) {
      const runtime::Sequences source(corpus, seq_len, 4);
      for (const std::vector<std::int64_t>& numbers :
           {std::vector<std::int64_t>{0}, {5, 6, 7}, {2, 901, 3, 3}}) {
        SCOPED_TRACE(runtime::concat("documents up to ", longest, ", ", numbers.size(),
                                     " sequences of ", seq_len));
        std::vector<RawSequence> sequences;
        for (const std::int64_t number : numbers) {
          sequences.push_back(
              test::packed_sequence(tokens, lengths, source.first_token(number), seq_len));
        }
        over_layouts_and_ranks([&](LayoutKind layout, int ranks, int rank) {
          expect_rows(make_local_batch(source, numbers, shape(layout, ranks, rank)), sequences,
                      rank);
        });
      }
    }
  }
}

/// Counts what is asked of another source.
class Counted final : public runtime::SequenceSource {
 public:
  explicit Counted(const runtime::SequenceSource& source) : source_(source) {}
  runtime::PackedDocuments documents(std::int64_t number) const override {
    return source_.documents(number);
  }
  void read(std::int64_t number, std::span<const runtime::Run> runs,
            runtime::Rows& rows) const override {
    for (const runtime::Run& run : runs) rows_read[number] += run.count;
    source_.read(number, runs, rows);
  }
  mutable std::map<std::int64_t, std::int64_t> rows_read;

 private:
  const runtime::SequenceSource& source_;
};

TEST(Batches, ARankReadsItsShareOfTheTokensAndTogetherTheyReadEachOnce) {
  constexpr std::int64_t kSeqLen = 127;
  const std::vector<std::int64_t> numbers{8, 9, 10};
  const RawSequences source(
      [](std::int64_t number) { return test::random_sequence(31, kSeqLen, number); });
  for (const LayoutKind layout : parallel::layout_kinds()) {
    for (const int ranks : {1, 3, 5, 7}) {
      SCOPED_TRACE(runtime::concat(parallel::name(layout), " over ", ranks));
      const Counted counted(source);
      std::int64_t before = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        make_local_batch(counted, numbers, shape(layout, ranks, rank));
        std::int64_t after = 0;
        for (const auto& [number, rows] : counted.rows_read) after += rows;
        // Zigzag's two pieces of a sequence may each be a token longer.
        EXPECT_NEAR(static_cast<double>(after - before), 3.0 * kSeqLen / ranks, 3 * 2);
        before = after;
      }
      for (const std::int64_t number : numbers) EXPECT_EQ(counted.rows_read[number], kSeqLen);
    }
  }
}

TEST(Batches, OfSequencesOfDifferentLengthsAreRefused) {
  const RawSequences source(
      [](std::int64_t number) { return test::random_sequence(31, 20 + number, number); });
  const std::vector<std::int64_t> numbers{0, 1};
  test::expect_error(runtime::ExitCode::internal, "a sequence of 21 tokens beside one of 20",
                     [&] { make_local_batch(source, numbers, shape(LayoutKind::zigzag, 2, 0)); });
}

// Of models whose layers see different masks.

constexpr std::int64_t kWindow = 16, kLong = 1024;
const std::vector<std::int64_t> kTwo{3, 4};

/// Number 3: one document of half a sequence, then documents of one token; others random. Where
/// full layers are balanced by the place in the long document, sliding ones go by the rows in it.
RawSequence long_sequence(std::int64_t number) {
  if (number != 3) return test::random_sequence(31, kLong, number);
  RawSequence skewed;
  skewed.tokens.assign(kLong, 1);
  skewed.labels.assign(kLong, 1);
  skewed.documents = {0};
  for (std::int64_t i = 0; i < kLong; ++i) {
    skewed.positions.push_back(static_cast<std::int32_t>(i < kLong / 2 ? i : 0));
    if (i + 1 >= kLong / 2) skewed.documents.push_back(i + 1);
  }
  return skewed;
}
LocalBatch long_batch(const BatchShape& shape) {
  return make_local_batch(RawSequences(long_sequence), kTwo, shape);
}

/// Pairs of each rank's queries in one full and `sliding` sliding layers, counted by the
/// definition.
std::vector<std::int64_t> pairs_of_ranks(const parallel::Layout& layout, std::int64_t sliding) {
  std::vector<std::int64_t> pairs;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    pairs.push_back(0);
    for (const std::int64_t token : layout.tokens_of(rank)) {
      const std::int64_t position = long_sequence(kTwo[static_cast<std::size_t>(token / kLong)])
                                        .positions[static_cast<std::size_t>(token % kLong)];
      pairs.back() += position + 1 + sliding * std::min(position + 1, kWindow);
    }
  }
  return pairs;
}

TEST(Batches, LayoutsBalanceTheSumOverLayers) {
  for (const int ranks : {3, 4, 7}) {
    for (const std::int64_t sliding : {1, 40}) {
      SCOPED_TRACE(runtime::concat(ranks, " ranks, ", sliding, " sliding layers"));
      BatchShape mixed = shape(LayoutKind::balanced, ranks, 0);
      mixed.kinds = {{std::nullopt, 1}, {kWindow, sliding}};
      const LocalBatch batch = long_batch(mixed);
      const auto pairs = pairs_of_ranks(batch.layout, sliding);
      const std::int64_t sum = std::accumulate(pairs.begin(), pairs.end(), std::int64_t{0});
      EXPECT_LE(static_cast<double>(*std::ranges::max_element(pairs) * ranks),
                parallel::kBalanceTarget * static_cast<double>(sum));
      ASSERT_EQ(batch.masks.size(), 2u);
      EXPECT_EQ(batch.masks[0].area() + sliding * batch.masks[1].area(), sum);
    }
  }
}

TEST(Batches, DocumentsOfAllLayersArePartsOfADocumentZigzag) {
  // A window cuts no document: the layout is that of the full mask.
  BatchShape full = shape(LayoutKind::document_zigzag, 4, 0), mixed = full;
  full.kinds = {{std::nullopt, 3}};
  mixed.kinds = {{kWindow, 2}, {std::nullopt, 1}};
  EXPECT_EQ(long_batch(mixed).layout.digest(), long_batch(full).layout.digest());
}

}  // namespace
}  // namespace longhaul::launch

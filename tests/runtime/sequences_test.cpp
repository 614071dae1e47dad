#include "runtime/io/sequences.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/raw_sequences.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

/// Token i of the corpus is i, so that a sequence tells where it was cut.
Corpus numbered_corpus(const test::TempDirectory& folder,
                       const std::vector<std::int64_t>& lengths) {
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  CorpusWriter writer(folder / "c.h5", std::max<std::int64_t>(1, total), "bytes");
  std::int32_t next = 0;
  for (const std::int64_t length : lengths) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
    std::iota(tokens.begin(), tokens.end(), next);
    next += static_cast<std::int32_t>(length);
    writer.append(tokens);
    writer.end_document();
  }
  writer.finish();
  return Corpus::open(folder / "c.h5");
}

TEST(KeyedPermutation, IsABijectionOfEverySize) {
  for (const std::int64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 127, 1000, 4096, 4097, 65537}) {
    for (const std::uint64_t epoch : {0, 1, 2}) {
      const KeyedPermutation order(size, 42, epoch);
      std::vector<bool> seen(static_cast<std::size_t>(size));
      for (std::int64_t position = 0; position < size; ++position) {
        const std::int64_t image = order(position);
        ASSERT_GE(image, 0);
        ASSERT_LT(image, size);
        EXPECT_FALSE(seen[static_cast<std::size_t>(image)]) << size << " " << position;
        seen[static_cast<std::size_t>(image)] = true;
      }
    }
  }
}

TEST(KeyedPermutation, WorksOnHugeDomains) {
  const std::int64_t size = (std::int64_t{1} << 61) + 12345;
  const KeyedPermutation order(size, 1, 0);
  std::set<std::int64_t> images;
  for (std::int64_t position = 0; position < 1000; ++position) {
    images.insert(order(position * 1000003));
    EXPECT_LT(*images.rbegin(), size);
  }
  EXPECT_EQ(images.size(), 1000u);
}

TEST(KeyedPermutation, DependsOnSeedAndEpochAlone) {
  const auto list = [](std::uint64_t seed, std::uint64_t epoch) {
    const KeyedPermutation order(1000, seed, epoch);
    std::vector<std::int64_t> images;
    for (std::int64_t i = 0; i < 1000; ++i) images.push_back(order(i));
    return images;
  };
  EXPECT_EQ(list(1, 0), list(1, 0));
  const auto base = list(1, 0);
  for (const auto& other : {list(1, 1), list(2, 0), list(1ull << 40, 0), list(1, 1ull << 40)}) {
    std::int64_t same = 0;
    for (std::size_t i = 0; i < 1000; ++i) same += base[i] == other[i];
    EXPECT_LT(same, 15);  // a random pair of orders agrees in one place on average
  }
}

TEST(KeyedPermutation, SpreadsEveryPosition) {
  // Over 6000 seeds, position 0 of 10 lands everywhere about 600 times: chi-square with 9 degrees
  // of freedom passes 27.9 once in a thousand.
  for (const std::int64_t position : {0, 5, 9}) {
    std::vector<double> counts(10);
    for (std::uint64_t seed = 0; seed < 6000; ++seed) {
      ++counts[static_cast<std::size_t>(KeyedPermutation(10, seed, 0)(position))];
    }
    double chi_square = 0;
    for (const double count : counts) chi_square += (count - 600) * (count - 600) / 600;
    EXPECT_LT(chi_square, 27.9) << position;
  }
}

Rows read(const SequenceSource& source, std::int64_t number, const std::vector<Run>& runs) {
  Rows rows;
  source.read(number, runs, rows);
  return rows;
}

/// Row by row, what the runs name of a whole sequence.
void expect_rows(const Rows& rows, const std::vector<Run>& runs,
                 const test::RawSequence& sequence) {
  Rows expected;
  for (const Run& run : runs) {
    std::int64_t index = run.first;
    for (std::int64_t row = 0; row < run.count; ++row, index += run.stride) {
      const auto at = static_cast<std::size_t>(index);
      expected.tokens.push_back(sequence.tokens.at(at));
      expected.labels.push_back(sequence.labels.at(at));
      expected.positions.push_back(sequence.positions.at(at));
    }
  }
  EXPECT_EQ(rows.tokens, expected.tokens);
  EXPECT_EQ(rows.labels, expected.labels);
  EXPECT_EQ(rows.positions, expected.positions);
}

/// Up to six runs in any order, some empty, some overlapping.
std::vector<Run> random_runs(std::int64_t seq_len, std::mt19937_64& random) {
  const auto draw = [&](std::int64_t below) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(below));
  };
  std::vector<Run> runs;
  for (std::int64_t left = draw(7); left > 0; --left) {
    const std::int64_t first = draw(seq_len), stride = 1 + draw(left % 2 == 0 ? 1 : 11);
    runs.push_back({first, draw((seq_len - 1 - first) / stride + 2), stride});
  }
  return runs;
}

TEST(Sequences, MatchTheDefinitionAndCoverEveryTokenOnceAnEpoch) {
  std::mt19937_64 random(7);
  for (const std::vector<std::int64_t>& lengths : {std::vector<std::int64_t>{1},
                                                   {100},
                                                   {1, 1, 1, 1, 1},
                                                   {0, 7, 0, 0, 127, 1, 0},
                                                   {3, 5, 250, 1, 41},
                                                   {64, 64, 64, 64},
                                                   {0, 0, 13, 0}}) {
    const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    const test::TempDirectory folder;
    const Corpus corpus = numbered_corpus(folder, lengths);
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(total));
    std::iota(numbers.begin(), numbers.end(), 0);
    for (const std::int64_t seq_len : {1, 2, 3, 7, 13, 64, 100, 127}) {
      if (seq_len > total) continue;
      const Sequences sequences(corpus, seq_len, 99);
      EXPECT_EQ(sequences.per_epoch(), (total + seq_len - 1) / seq_len);
      for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
        std::vector<int> seen(static_cast<std::size_t>(total));
        for (std::int64_t n = 0; n < sequences.per_epoch(); ++n) {
          const std::int64_t cursor = epoch * sequences.per_epoch() + n;
          const std::int64_t begin = sequences.first_token(cursor);
          EXPECT_EQ(begin % seq_len, 0);
          const test::RawSequence expected =
              test::packed_sequence(numbers, lengths, begin, seq_len);
          EXPECT_EQ(sequences.documents(cursor).offsets, expected.documents);
          EXPECT_EQ(sequences.documents(cursor).tokens_before, expected.tokens_before);
          const Rows whole = read(sequences, cursor, {{0, seq_len, 1}});
          expect_rows(whole, {{0, seq_len, 1}}, expected);
          for (const std::int32_t token : whole.tokens) ++seen[static_cast<std::size_t>(token)];
          const std::vector<runtime::Run> runs = random_runs(seq_len, random);
          expect_rows(read(sequences, cursor, runs), runs, expected);
        }
        const std::int64_t twice = sequences.per_epoch() * seq_len - total;  // the wrapped ones
        for (std::int64_t token = 0; token < total; ++token) {
          EXPECT_EQ(seen[static_cast<std::size_t>(token)], token < twice ? 2 : 1) << token;
        }
      }
    }
  }
}

TEST(Sequences, ArePureFunctionsOfTheCursor) {
  const test::TempDirectory folder;
  const Corpus corpus = numbered_corpus(folder, {300, 20, 1, 79, 600});
  const Sequences forward(corpus, 17, 5), again(corpus, 17, 5), other(corpus, 17, 6);
  std::vector<std::vector<std::int32_t>> in_order;
  for (std::int64_t cursor = 0; cursor < 150; ++cursor)
    in_order.push_back(read(forward, cursor, {{0, 17, 1}}).tokens);
  int same = 0;
  for (std::int64_t cursor = 149; cursor >= 0; --cursor) {
    const auto& expected = in_order[static_cast<std::size_t>(cursor)];
    EXPECT_EQ(read(again, cursor, {{0, 17, 1}}).tokens, expected);
    same += read(other, cursor, {{0, 17, 1}}).tokens == expected;
  }
  EXPECT_LT(same, 15);
}

/// Blocks of one token, all but the allowed ones damaged: what is read without an error touched no
/// other token of the file.
TEST(Sequences, ReadTheTokensOfTheirRowsAndTheNextOfTheirLabels) {
  const std::vector<std::int64_t> lengths{3, 0, 41, 1, 1, 90, 13, 7};
  constexpr std::int64_t kTotal = 156;
  std::vector<std::int32_t> tokens(kTotal);
  std::iota(tokens.begin(), tokens.end(), 1000);
  const test::TempDirectory folder;
  const auto corpus = [&](const std::set<std::int64_t>& damaged) {
    test::write_small_blocks(folder / "c.h5", tokens, lengths, 1, damaged);
    return Corpus::open(folder / "c.h5");
  };
  std::set<std::int64_t> all;
  for (std::int64_t token = 0; token < kTotal; ++token) all.insert(token);
  for (const std::int64_t seq_len : {1, 7, 127}) {
    for (const std::int64_t ranks : {1, 3, 5, 7}) {
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const std::int64_t share = seq_len / ranks;
        for (const runtime::Run& run :
             {runtime::Run{rank * share, share, 1},
              runtime::Run{rank, (seq_len - 1 - rank + ranks) / ranks, ranks}}) {
          // One of the epoch's sequences, the wrapped one included, in turn.
          const std::int64_t number = (rank + run.stride) % ((kTotal - 1) / seq_len + 1);
          SCOPED_TRACE(concat("sequence ", number, " of ", seq_len, " tokens, rows ", run.first,
                              " + ", run.stride, " i, ", run.count));
          const Corpus whole = corpus({});
          const std::int64_t begin = Sequences(whole, seq_len, 3).first_token(number);
          auto expected = test::packed_sequence(tokens, lengths, begin, seq_len);
          const RowRules rules{.labels_cross = rank % 2 == 1};
          for (std::int64_t i = begin; rules.labels_cross && i < begin + seq_len; ++i) {
            const bool corpus_ends = i + 1 == kTotal && i + 1 == begin + seq_len;
            expected.labels[static_cast<std::size_t>(i - begin)] =
                corpus_ends ? -1 : tokens[static_cast<std::size_t>((i + 1) % kTotal)];
          }
          std::set<std::int64_t> needed;
          for (std::int64_t i = 0; i < run.count; ++i) {
            const std::int64_t index = run.first + i * run.stride;
            needed.insert((begin + index) % kTotal);
            if (expected.labels.at(static_cast<std::size_t>(index)) >= 0)
              needed.insert((begin + index + 1) % kTotal);
          }
          EXPECT_LE(std::ssize(needed), run.stride == 1 ? run.count + 1 : 2 * run.count);

          std::set<std::int64_t> others;
          std::ranges::set_difference(all, needed, std::inserter(others, others.end()));
          const Corpus only = corpus(others);
          expect_rows(read(Sequences(only, seq_len, 3, rules), number, {run}), {run}, expected);

          const Corpus none = corpus(all);  // and documents need no token
          EXPECT_EQ(Sequences(none, seq_len, 3).documents(number).offsets, expected.documents);
          if (needed.empty()) continue;
          const Corpus lacking = corpus({*std::next(needed.begin(), std::ssize(needed) / 2)});
          test::expect_error(ExitCode::data, "'block_hashes'",
                             [&] { read(Sequences(lacking, seq_len, 3, rules), number, {run}); });
        }
      }
    }
  }
}

TEST(Sequences, RefuseRowsBeyondTheirEnd) {
  const test::TempDirectory folder;
  const Corpus corpus = numbered_corpus(folder, {20});
  const Sequences sequences(corpus, 10, 1);
  EXPECT_TRUE(read(sequences, 0, {{10, 0, 1}, {0, 0, 3}}).tokens.empty());
  for (const runtime::Run& run :
       {runtime::Run{10, 1, 1}, runtime::Run{0, 11, 1}, runtime::Run{1, 4, 3},
        runtime::Run{-1, 2, 1}, runtime::Run{0, 2, 0}}) {
    test::expect_error(ExitCode::internal, "of a sequence of 10 tokens",
                       [&] { read(sequences, 0, {run}); });
  }
}

TEST(Sequences, RefusesACorpusShorterThanASequence) {
  const test::TempDirectory folder;
  const Corpus corpus = numbered_corpus(folder, {9, 1});
  EXPECT_EQ(Sequences(corpus, 10, 1).per_epoch(), 1);
  test::expect_error(ExitCode::config, "seq_len is 11", [&] { Sequences(corpus, 11, 1); });
  test::expect_error(ExitCode::config, "seq_len is 0", [&] { Sequences(corpus, 0, 1); });
}

}  // namespace
}  // namespace longhaul::runtime

#include "runtime/io/sequences.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "tests/support/expect_error.h"
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

/// The sequence starting at corpus token `begin`, token by token, from the document lengths alone.
Sequence expected_sequence(const std::vector<std::int64_t>& lengths, std::int64_t begin,
                           std::int64_t seq_len) {
  std::vector<int> document_of;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    document_of.insert(document_of.end(), static_cast<std::size_t>(lengths[document]),
                       static_cast<int>(document));
  }
  const auto total = std::ssize(document_of);
  Sequence sequence;
  for (std::int64_t i = 0; i < seq_len; ++i) {
    const std::int64_t at = (begin + i) % total;
    const bool starts =
        i == 0 || at == 0 ||
        document_of[static_cast<std::size_t>(at)] != document_of[static_cast<std::size_t>(at - 1)];
    if (starts) sequence.documents.push_back(i);
    sequence.tokens.push_back(static_cast<std::int32_t>(at));
    sequence.positions.push_back(starts ? 0 : sequence.positions.back() + 1);
    const bool ends =
        i + 1 == seq_len || at + 1 == total ||
        document_of[static_cast<std::size_t>(at)] != document_of[static_cast<std::size_t>(at + 1)];
    sequence.labels.push_back(ends ? -1 : static_cast<std::int32_t>(at + 1));
  }
  sequence.documents.push_back(seq_len);
  return sequence;
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
    for (const std::int64_t seq_len : {1, 2, 3, 7, 13, 64, 100, 127}) {
      if (seq_len > total) continue;
      const Sequences sequences(corpus, seq_len, 99);
      EXPECT_EQ(sequences.per_epoch(), (total + seq_len - 1) / seq_len);
      for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
        std::vector<int> seen(static_cast<std::size_t>(total));
        for (std::int64_t n = 0; n < sequences.per_epoch(); ++n) {
          const std::int64_t cursor = epoch * sequences.per_epoch() + n;
          const Sequence sequence = sequences.read(cursor);
          const std::int64_t begin = sequences.first_token(cursor);
          EXPECT_EQ(begin % seq_len, 0);
          const Sequence expected = expected_sequence(lengths, begin, seq_len);
          EXPECT_EQ(sequence.tokens, expected.tokens);
          EXPECT_EQ(sequence.labels, expected.labels);
          EXPECT_EQ(sequence.positions, expected.positions);
          EXPECT_EQ(sequence.documents, expected.documents);
          for (const std::int32_t token : sequence.tokens) ++seen[static_cast<std::size_t>(token)];
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
    in_order.push_back(forward.read(cursor).tokens);
  int same = 0;
  for (std::int64_t cursor = 149; cursor >= 0; --cursor) {
    EXPECT_EQ(again.read(cursor).tokens, in_order[static_cast<std::size_t>(cursor)]);
    same += other.read(cursor).tokens == in_order[static_cast<std::size_t>(cursor)];
  }
  EXPECT_LT(same, 15);
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

#include "runtime/io/mixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using Weights = std::vector<double>;

double share_of(const Weights& weights, std::size_t corpus) {
  return weights[corpus] / std::accumulate(weights.begin(), weights.end(), 0.0);
}

const std::vector<Weights>& some_weights() {
  static const std::vector<Weights> all = {{1},
                                           {1, 1},
                                           {0.7, 0.3},
                                           {7, 2, 1},
                                           {0.9, 0.05, 0.03, 0.02},
                                           {1, 1e-3},
                                           {3, 3, 3, 3, 3, 3, 3},
                                           {1e6, 1, 2e5, 127},
                                           {0.1, 0.1, 0.8}};
  return all;
}

/// Ten thousand sequences: each corpus gives its own in order, none left out, and at every length
/// as many as its share, but for about one a corpus.
TEST(Mixture, EveryPrefixHasTheShares) {
  constexpr std::int64_t kCount = 10'000;
  for (const Weights& weights : some_weights()) {
    for (const std::uint64_t seed : {1, 2}) {
      SCOPED_TRACE(weights.size());
      const Mixture mixture(weights, seed);
      const double corpora = static_cast<double>(weights.size());
      std::vector<std::int64_t> taken(weights.size());
      for (std::int64_t number = 0; number < kCount; ++number) {
        const Mixture::Place place = mixture(number);
        const auto corpus = static_cast<std::size_t>(place.corpus);
        ASSERT_LT(corpus, weights.size());
        ASSERT_EQ(place.number, taken[corpus]++) << "sequence " << number;
        if (number % 97 == 0) {
          ASSERT_EQ(mixture.taken(number + 1), taken);
        }
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const double wanted = share_of(weights, i) * static_cast<double>(number + 1);
          ASSERT_LE(std::abs(static_cast<double>(taken[i]) - wanted), 1 + corpora)
              << "corpus " << i << " of the first " << number + 1;
        }
      }
      for (std::size_t i = 0; i < weights.size(); ++i) {
        EXPECT_NEAR(mixture.share(static_cast<std::int64_t>(i)), share_of(weights, i), 1e-9);
        if (share_of(weights, i) * kCount < 200) continue;
        EXPECT_NEAR(static_cast<double>(taken[i]) / kCount / share_of(weights, i), 1, 0.01);
      }
    }
  }
}

TEST(Mixture, AnyNumberHasAPlaceAtOnce) {
  for (const Weights& weights : some_weights()) {
    const Mixture mixture(weights, 5);
    for (const std::int64_t number :
         {std::int64_t{1} << 31, (std::int64_t{1} << 40) + 12345, std::int64_t{1} << 59}) {
      std::vector<std::int64_t> taken = mixture.taken(number);
      EXPECT_EQ(std::accumulate(taken.begin(), taken.end(), std::int64_t{0}), number);
      for (std::int64_t next = number; next < number + 50; ++next) {
        const Mixture::Place place = mixture(next);
        EXPECT_EQ(place.number, taken[static_cast<std::size_t>(place.corpus)]++);
      }
      for (std::size_t i = 0; i < weights.size(); ++i) {
        EXPECT_NEAR(static_cast<double>(taken[i]) / static_cast<double>(number),
                    share_of(weights, i), 1e-9 + 1e2 / static_cast<double>(number));
      }
    }
  }
}

/// Two data ranks take every other sequence: neither gets one corpus alone.
TEST(Mixture, FollowsNoRhythm) {
  for (const std::int64_t stride : {2, 3, 4, 8}) {
    const Mixture mixture(Weights{1, 1}, 9);
    double first = 0;
    for (std::int64_t i = 0; i < 1000; ++i) first += mixture(i * stride).corpus == 0 ? 1 : 0;
    EXPECT_NEAR(first / 1000, 0.5, 0.1) << stride;
  }
}

TEST(Mixture, DependsOnWeightsAndSeedAlone) {
  const auto order = [](const Weights& weights, std::uint64_t seed) {
    const Mixture mixture(weights, seed);
    std::vector<std::int64_t> corpora;
    for (std::int64_t i = 0; i < 300; ++i) corpora.push_back(mixture(i).corpus);
    return corpora;
  };
  EXPECT_EQ(order({0.7, 0.3}, 1), order({7, 3}, 1));
  EXPECT_NE(order({0.7, 0.3}, 1), order({0.7, 0.3}, 2));
  EXPECT_NE(order({0.7, 0.3}, 1), order({0.7, 0.3}, std::uint64_t{1} << 40));
  EXPECT_NE(order({0.7, 0.3}, 1), order({0.6, 0.4}, 1));
  const Mixture mixture(Weights{1, 1, 1}, 4);
  EXPECT_EQ(mixture.seed_of(0), 4u);
  EXPECT_EQ(std::set({mixture.seed_of(0), mixture.seed_of(1), mixture.seed_of(2)}).size(), 3u);
}

TEST(Mixture, ItsDigestIsOfCorporaOrderAndShares) {
  const std::vector<std::string> ab = {"a", "b"}, ba = {"b", "a"}, one = {"a"};
  const std::string digest = Mixture(Weights{0.7, 0.3}, 1).digest(ab);
  EXPECT_EQ(digest.size(), 32u);
  EXPECT_EQ(Mixture(Weights{7, 3}, 2).digest(ab), digest);  // the seed is not in it
  EXPECT_NE(Mixture(Weights{0.7, 0.3}, 1).digest(ba), digest);
  EXPECT_NE(Mixture(Weights{0.7, 0.31}, 1).digest(ab), digest);
  EXPECT_EQ(Mixture(Weights{0.7}, 1).digest(one), "a");
}

/// A corpus whose tokens are all `token`, but for the first, which is 0; weights where `weight` is
/// given.
Corpus marked_corpus(const std::filesystem::path& path, std::int64_t tokens, std::int32_t token,
                     std::optional<float> weight) {
  CorpusWriter writer(path, 100, "bytes");
  const auto size = static_cast<std::size_t>(tokens);
  std::vector<std::int32_t> ids(size, token);
  ids[0] = 0;
  writer.append(ids, weight ? std::vector<float>(size, *weight) : std::vector<float>());
  writer.end_document();
  writer.finish();
  return Corpus::open(path);
}

TEST(MixedSequences, AreEachOfOneCorpusAndWeighOneWhereItHasNoWeights) {
  const test::TempDirectory folder;
  constexpr std::int64_t kLength = 10;
  const Corpus weighed = marked_corpus(folder / "a.h5", 70, 7, 3),
               plain = marked_corpus(folder / "b.h5", 40, 9, std::nullopt);
  const Mixture mixture(Weights{1, 2}, 3);
  const MixedSequences mixed(mixture, {Sequences(weighed, kLength, mixture.seed_of(0)),
                                       Sequences(plain, kLength, mixture.seed_of(1))});
  std::vector<std::int64_t> starts(2);
  Rows all;
  for (std::int64_t number = 0; number < 21; ++number) {  // an epoch of a, more than two of b
    Rows rows;
    mixed.read(number, std::vector<runtime::Run>{{0, kLength, 1}}, rows);
    mixed.read(number, std::vector<runtime::Run>{{0, kLength, 1}}, all);
    const auto corpus = static_cast<std::size_t>(mixture(number).corpus);
    const std::int32_t token = corpus == 0 ? 7 : 9;
    const float weight = corpus == 0 ? 3.0f : 1.0f;
    ASSERT_EQ(rows.tokens.size(), 10u);
    ASSERT_EQ(rows.label_weights.size(), 10u);
    starts[corpus] += rows.tokens[0] == 0;
    for (std::size_t i = 0; i < 10; ++i) {
      EXPECT_TRUE(rows.tokens[i] == token || (i == 0 && rows.tokens[i] == 0));
      EXPECT_EQ(rows.label_weights[i], rows.labels[i] < 0 ? 0 : weight);
    }
    EXPECT_EQ(mixed.documents(number).offsets, (std::vector<std::int64_t>{0, kLength}));
  }
  EXPECT_EQ(all.label_weights.size(), all.labels.size());
  EXPECT_EQ(starts[0], 1);
  EXPECT_GE(starts[1], 3);
  EXPECT_LE(starts[1], 4);
  EXPECT_EQ(mixed.latest_epoch(1), 0);
  EXPECT_EQ(mixed.latest_epoch(21), (mixture.taken(21)[1] - 1) / 4);
  // Where no corpus has weights there are none.
  const MixedSequences one(Mixture(Weights{1}, 3), {Sequences(plain, kLength, 3)});
  Rows rows;
  one.read(5, std::vector<runtime::Run>{{0, kLength, 1}}, rows);
  EXPECT_TRUE(rows.label_weights.empty());
  Rows expected;
  Sequences(plain, kLength, 3).read(5, std::vector<runtime::Run>{{0, kLength, 1}}, expected);
  EXPECT_EQ(rows.tokens, expected.tokens);
  EXPECT_EQ(one.of(0).first_token(5), Sequences(plain, kLength, 3).first_token(5));
}

TEST(Mixture, RefusesWhatIsNone) {
  test::expect_error(ExitCode::internal, "no corpora", [] { Mixture(Weights{}, 1); });
  for (const Weights& weights :
       {Weights{1, 0}, Weights{1, -1}, Weights{1, NAN}, Weights{1, 1e-10}, Weights{1, INFINITY}}) {
    test::expect_error(ExitCode::internal, "in a mixture", [&] { Mixture(weights, 1); });
  }
  test::expect_error(ExitCode::internal, "sequence number -1", [] { Mixture(Weights{1}, 1)(-1); });
}

}  // namespace
}  // namespace longhaul::runtime

// Masks and their cutting against bitmaps.
#include "attention/mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <numeric>
#include <optional>

#include "runtime/error.h"
#include "tests/support/random_masks.h"

namespace longhaul::attention {
namespace {

using runtime::Error;
using runtime::ExitCode;
using test::Bitmap;
using test::random_disjoint_slices;
using test::random_slice;
using test::random_small_disjoint_slices;
using test::random_small_slice;
using TokenRun = attention::Run;  // Test::Run of GoogleTest hides the name

std::string error_of(const std::function<void()>& call, ExitCode expected) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected);
    return error.what();
  }
  ADD_FAILURE() << "did not throw";
  return {};
}

TEST(Slice, AreaTighteningAndIntersectionEqualTheBitmap) {
  std::mt19937 random(1);
  for (int round = 0; round < 100'000; ++round) {
    const std::int64_t queries = random() % 12, keys = random() % 12;
    const Slice a = random_slice(queries, keys, random), b = random_slice(queries, keys, random);
    const Bitmap map_a(queries, keys, {&a, 1});
    ASSERT_EQ(area(a), map_a.sum());

    const Slice tight = tightened(a);
    ASSERT_EQ(Bitmap(queries, keys, {&tight, 1}), map_a);
    ASSERT_EQ(tightened(tight), tight);
    std::int64_t seen = 0;
    for (std::int64_t i = a.q_begin; i < a.q_end; ++i)
      seen += std::max<std::int64_t>(0, a.key_end(i) - a.key_begin(i));
    ASSERT_EQ(seen, map_a.sum());
    if (seen == 0) {
      ASSERT_EQ(tight, (Slice{0, 0, 0, 0, 0, 0}));
    } else {  // every end is attained
      Slice hull{queries, 0, keys, 0, keys, -queries};
      for (std::int64_t i = 0; i < queries; ++i) {
        for (std::int64_t j = 0; j < keys; ++j) {
          if (map_a.at(i, j) == 0) continue;
          hull = {std::min(hull.q_begin, i), std::max(hull.q_end, i + 1),
                  std::min(hull.k_begin, j), std::max(hull.k_end, j + 1),
                  std::min(hull.lo, j - i),  std::max(hull.hi, j - i)};
        }
      }
      ASSERT_EQ(tight, hull);
    }

    const Slice both = intersect(a, b);
    Bitmap expected(queries, keys), got(queries, keys, {&both, 1});
    for (std::int64_t i = 0; i < queries; ++i) {
      for (std::int64_t j = 0; j < keys; ++j) {
        expected.at(i, j) = map_a.at(i, j) != 0 && Bitmap(queries, keys, {&b, 1}).at(i, j) != 0;
      }
    }
    ASSERT_EQ(got, expected);
  }
}

TEST(Slice, AreaOfMillionsOfTokens) {
  const std::int64_t n = std::int64_t{1} << 30;
  EXPECT_EQ(area(Slice{0, n, 0, n, -kUnbounded, 0}), n / 2 * (n + 1));
  EXPECT_EQ(area(Slice{0, n, 0, n}), n * n);
  EXPECT_EQ(area(Slice{0, n, 0, n, -1023, 0}), 1024 * n - 1023 * 1024 / 2);
}

TEST(Slice, TypesAnchorTheirCorners) {
  // 2 queries x 4 keys: causal ends at the bottom right, inverse causal starts at the top left.
  EXPECT_EQ(area(slice_from_type(0, 2, 0, 4, 0)), 8);
  EXPECT_EQ(area(slice_from_type(0, 2, 0, 4, 1)), 3 + 4);
  EXPECT_EQ(area(slice_from_type(0, 2, 0, 4, 2)), 4 + 3);
  EXPECT_EQ(area(slice_from_type(0, 2, 0, 4, 3)), 3 + 3);
  // 4 queries x 2 keys: the first rows of the causal one are empty.
  EXPECT_EQ(tightened(slice_from_type(0, 4, 0, 2, 1)).q_begin, 2);
  EXPECT_EQ(tightened(slice_from_type(0, 4, 0, 2, 2)).q_end, 2);
  EXPECT_EQ(slice_from_type(3, 5, 10, 14, 1).key_end(4), 14);
  EXPECT_EQ(slice_from_type(3, 5, 10, 14, 2).key_begin(3), 10);
  error_of([] { slice_from_type(0, 1, 0, 1, 4); }, ExitCode::data);
}

TEST(Mask, OverlapIsFoundExactlyWhenTheBitmapHasIt) {
  std::mt19937 random(2);
  int overlapping = 0;
  for (int round = 0; round < 100'000; ++round) {
    const std::int64_t tokens = 1 + random() % 14;
    std::vector<Slice> slices =
        random_disjoint_slices(tokens, tokens, 1 + static_cast<int>(random() % 8), random);
    if (random() % 2 == 0) slices.push_back(random_slice(tokens, tokens, random));
    std::shuffle(slices.begin(), slices.end(), random);
    const Bitmap map(tokens, tokens, slices);
    if (map.max() <= 1) {
      const Mask mask = Mask::from_slices(tokens, slices);
      ASSERT_EQ(Bitmap(tokens, tokens, mask.slices()), map);
      ASSERT_EQ(mask.area(), map.sum());
    } else {
      ++overlapping;
      ASSERT_THROW(Mask::from_slices(tokens, slices), Error);
    }
  }
  EXPECT_GT(overlapping, 10'000);
}

/// Two slices that meet only after a third one between them has ended, with a fourth that begins
/// later: rare among random sets.
TEST(Mask, OverlapIsFoundBehindASliceThatEnded) {
  const std::vector<Slice> slices{{0, 20, 0, 20, -kUnbounded, 0},  // meets keys 8 and 9 from row 8
                                  {0, 4, 5, 6},
                                  {2, 20, 8, 10},
                                  {7, 8, 19, 20}};
  EXPECT_EQ(Bitmap(20, 20, slices).max(), 2);
  error_of([&] { Mask::from_slices(20, slices); }, ExitCode::data);
}

TEST(Mask, ErrorsNameWhatIsWrong) {
  const std::string overlap = error_of(
      [] {
        Mask::from_slices(10, {{0, 3, 0, 3}, {5, 6, 0, 9}, {2, 6, 2, 4}});
      },
      ExitCode::data);
  EXPECT_NE(overlap.find("slices 0 (queries [0, 3), keys [0, 3)) and 2 ("), std::string::npos)
      << overlap;
  const std::string outside = error_of(
      [] {
        Mask::from_slices(10, {{0, 3, 0, 3}, {5, 6, 0, 11}});
      },
      ExitCode::data);
  EXPECT_NE(outside.find("slice 1"), std::string::npos) << outside;
  const std::vector<std::int64_t> falling{0, 4, 3, 9}, late{1, 4};
  EXPECT_NE(error_of([&] { Mask::documents(falling); }, ExitCode::data).find("offset 2 is 3"),
            std::string::npos);
  error_of([&] { Mask::documents(late); }, ExitCode::data);
  error_of([&] { Mask::documents({}); }, ExitCode::data);
}

TEST(Mask, FactoriesMeanWhatTheySay) {
  const std::vector<std::int64_t> offsets{0, 0, 1, 5, 5, 8};
  const Mask documents = Mask::documents(offsets);
  for (std::int64_t i = 0; i < 8; ++i) {
    for (std::int64_t j = 0; j < 8; ++j) {
      const auto document = [&](std::int64_t t) { return t < 1 ? 0 : t < 5 ? 1 : 2; };
      EXPECT_EQ(Bitmap(8, 8, documents.slices()).at(i, j), j <= i && document(i) == document(j));
    }
  }
  EXPECT_EQ(Mask::causal(5).area(), 15);
  EXPECT_EQ(Mask::full(5).area(), 25);
  EXPECT_EQ(Mask::full(0).area(), 0);
  EXPECT_EQ(Mask::documents(std::vector<std::int64_t>{0}).tokens(), 0);
  const std::vector<std::int64_t> twice{0, 3, 6};
  EXPECT_EQ(Mask::causal(3).repeated(2), Mask::documents(twice));
  const std::vector<Mask> parts{Mask::causal(3), Mask::full(2), Mask::causal(0)};
  const Mask joined = Mask::concatenated(parts);
  EXPECT_EQ(joined.tokens(), 5);
  EXPECT_EQ(joined.area(), 6 + 4);
  EXPECT_EQ(Mask::causal(3).repeated(0).tokens(), 0);
}

TEST(Mask, DigestFollowsTheMask) {
  const Mask causal = Mask::causal(6);
  EXPECT_EQ(causal.digest(), Mask::from_slices(6, {{0, 6, 0, 6, -99, 0}}).digest());
  EXPECT_EQ(Mask::from_slices(6, {{0, 2, 0, 2}, {2, 6, 0, 3}}).digest(),
            Mask::from_slices(6, {{2, 6, 0, 3}, {0, 2, 0, 2}, {4, 4, 0, 1}}).digest());
  EXPECT_NE(causal.digest(), Mask::full(6).digest());
  EXPECT_NE(Mask::from_slices(6, {{0, 2, 0, 2}}).digest(),
            Mask::from_slices(7, {{0, 2, 0, 2}}).digest());
}

TEST(Mask, OverlapSearchIsFastForManyDocuments) {
  std::vector<std::int64_t> offsets(20'001);
  std::iota(offsets.begin(), offsets.end(), std::int64_t{0});
  for (auto& offset : offsets) offset *= 7;
  const Mask mask = Mask::documents(offsets);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Mask::from_slices(mask.tokens(), mask.slices()), mask);
  // Also with all slices active at once: 20,000 stripes of keys.
  std::vector<Slice> stripes;
  for (std::int64_t i = 0; i < 20'000; ++i) stripes.push_back({0, 20'000, i, i + 1});
  EXPECT_EQ(Mask::from_slices(20'000, stripes).area(), 20'000LL * 20'000);
  EXPECT_LT(std::chrono::steady_clock::now() - start,
            std::chrono::seconds(2));  // all pairs would be 2e8 tests
}

std::vector<std::int64_t> tokens_of(const std::vector<TokenRun>& runs) {
  std::vector<std::int64_t> tokens;
  for (const TokenRun& run : runs) {
    for (std::int64_t i = 0; i < run.count; ++i) tokens.push_back(run.first + i * run.stride);
  }
  return tokens;
}

/// The runs of one rank of P: contiguous, zigzag, striped, or an arbitrary order of short runs.
std::vector<TokenRun> random_runs(std::int64_t tokens, int kind, std::int64_t ranks,
                                  std::mt19937& random) {
  const std::int64_t rank = random() % static_cast<std::uint64_t>(ranks);
  const auto chunk = [&](std::int64_t index, std::int64_t chunks) {
    const std::int64_t begin = index * tokens / chunks, end = (index + 1) * tokens / chunks;
    return TokenRun{begin, end - begin, 1};
  };
  switch (kind) {
    case 0:
      return {chunk(rank, ranks)};
    case 1:
      return {chunk(rank, 2 * ranks), chunk(2 * ranks - 1 - rank, 2 * ranks)};
    case 2:
      return {{rank, rank < tokens ? (tokens - rank + ranks - 1) / ranks : 0, ranks}};
    default:
      break;
  }
  std::vector<TokenRun> runs;
  for (std::int64_t at = 0; at < tokens;) {
    const std::int64_t count = 1 + random() % 3;
    if (random() % 2 == 0) runs.push_back({at, std::min(count, tokens - at), 1});
    at += count;
  }
  std::shuffle(runs.begin(), runs.end(), random);
  return runs;
}

TEST(Cut, EqualsTheBitmapForEveryLayout) {
  std::mt19937 random(3);
  for (int round = 0; round < 100'000; ++round) {
    const std::int64_t tokens = 1 + random() % 14;
    const Mask mask = Mask::from_slices(
        tokens, random_disjoint_slices(tokens, tokens, 1 + static_cast<int>(random() % 5), random));
    const int kind = static_cast<int>(random() % 4);
    const std::int64_t ranks = 1 + random() % 4;
    const auto q_runs = random_runs(tokens, kind, ranks, random),
               k_runs = random_runs(tokens, kind, ranks, random);
    const auto queries = tokens_of(q_runs), keys = tokens_of(k_runs);
    const Bitmap global(tokens, tokens, mask.slices());
    const auto rows = static_cast<std::int64_t>(queries.size()),
               columns = static_cast<std::int64_t>(keys.size());
    Bitmap expected(rows, columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        expected.at(i, j) =
            global.at(queries[static_cast<std::size_t>(i)], keys[static_cast<std::size_t>(j)]);
      }
    }
    const std::vector<Slice> bands = cut(mask, q_runs, k_runs);
    ASSERT_EQ(Bitmap(rows, columns, bands), expected) << "kind " << kind << " ranks " << ranks;
    ASSERT_EQ(any_visible(mask, q_runs, k_runs), expected.sum() > 0);
    for (const Slice& band : bands) ASSERT_EQ(tightened(band), band);
  }
}

/// The runs of every rank, which together hold each token once: a layout of random_runs, or runs of
/// a few tokens dealt to ranks at random.
std::vector<std::vector<TokenRun>> random_partition(std::int64_t tokens, std::int64_t ranks,
                                                    std::mt19937& random) {
  std::vector<std::vector<TokenRun>> parts(static_cast<std::size_t>(ranks));
  const auto chunk = [&](std::int64_t index, std::int64_t chunks) {
    const std::int64_t begin = index * tokens / chunks, end = (index + 1) * tokens / chunks;
    return TokenRun{begin, end - begin, 1};
  };
  const auto kind = random() % 4;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    std::vector<TokenRun>& runs = parts[static_cast<std::size_t>(rank)];
    if (kind == 0) runs = {chunk(rank, ranks)};
    if (kind == 1) runs = {chunk(rank, 2 * ranks), chunk(2 * ranks - 1 - rank, 2 * ranks)};
    if (kind == 2) runs = {{rank, rank < tokens ? (tokens - rank + ranks - 1) / ranks : 0, ranks}};
  }
  for (std::int64_t at = 0; kind == 3 && at < tokens;) {
    const std::int64_t count = std::min<std::int64_t>(1 + random() % 3, tokens - at);
    parts[random() % parts.size()].push_back({at, count, 1});
    at += count;
  }
  if (kind == 3) {
    for (auto& runs : parts) std::shuffle(runs.begin(), runs.end(), random);
  }
  return parts;
}

/// Adds the pairs of a cut, found through the tokens of the two views.
void add_pairs(Bitmap& map, const std::vector<Slice>& bands, const std::vector<TokenRun>& q_runs,
               const std::vector<TokenRun>& k_runs) {
  const auto queries = tokens_of(q_runs), keys = tokens_of(k_runs);
  const Bitmap rows(static_cast<std::int64_t>(queries.size()),
                    static_cast<std::int64_t>(keys.size()), bands);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    for (std::size_t j = 0; j < keys.size(); ++j) {
      const auto pair = rows.at(static_cast<std::int64_t>(i), static_cast<std::int64_t>(j));
      map.at(queries[i], keys[j]) = static_cast<std::uint8_t>(map.at(queries[i], keys[j]) + pair);
    }
  }
}

/// Whole sets at once: overlap, area, intersection with another set, and the cuts between all ranks
/// of a layout, which must cover every pair of the mask once.
TEST(SliceSets, AgreeWithTheBitmapOnOverlapAreaIntersectionCutAndCoverage) {
  constexpr int kSets = 100'000;
  std::mt19937 random(5);
  int overlapping = 0, masks = 0;
  std::int64_t slices_seen = 0, cuts = 0, pairs = 0;
  for (int set = 0; set < kSets; ++set) {
    const std::int64_t tokens = 1 + random() % 20;
    const bool small = random() % 2 == 0;
    const int attempts = 1 + static_cast<int>(random() % (small ? 80 : 9));
    std::vector<Slice> slices = small
                                    ? random_small_disjoint_slices(tokens, tokens, attempts, random)
                                    : random_disjoint_slices(tokens, tokens, attempts, random);
    if (random() % 3 == 0)
      slices.push_back(small ? random_small_slice(tokens, tokens, random)
                             : random_slice(tokens, tokens, random));
    std::shuffle(slices.begin(), slices.end(), random);
    const Bitmap map(tokens, tokens, slices);
    if (map.max() > 1) {
      ++overlapping;
      ASSERT_THROW(Mask::from_slices(tokens, slices), Error);
      continue;
    }
    const Mask mask = Mask::from_slices(tokens, slices);
    ++masks;
    slices_seen += static_cast<std::int64_t>(mask.slices().size());
    pairs += map.sum();
    ASSERT_EQ(Bitmap(tokens, tokens, mask.slices()), map);
    ASSERT_EQ(mask.area(), map.sum());

    const std::vector<Slice> others = random_disjoint_slices(tokens, tokens, 4, random);
    const Bitmap other(tokens, tokens, others);
    Bitmap both(tokens, tokens), expected(tokens, tokens);
    std::int64_t both_area = 0;
    for (const Slice& a : mask.slices()) {
      for (const Slice& b : others) {
        both.add(intersect(a, b));
        both_area += area(intersect(a, b));
      }
    }
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t j = 0; j < tokens; ++j)
        expected.at(i, j) = static_cast<std::uint8_t>(map.at(i, j) * other.at(i, j));
    }
    ASSERT_EQ(both, expected);
    ASSERT_EQ(both_area, expected.sum());

    const auto edge = [&] { return static_cast<std::int64_t>(random() % 25) - 12; };
    const std::int64_t lo = edge(), hi = edge();
    const Mask banded = mask.within(lo, hi);
    Bitmap inside(tokens, tokens);
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t j = 0; j < tokens; ++j)
        inside.at(i, j) = lo <= j - i && j - i <= hi ? map.at(i, j) : std::uint8_t{0};
    }
    ASSERT_EQ(Bitmap(tokens, tokens, banded.slices()), inside);
    ASSERT_EQ(banded, Mask::from_slices(tokens, banded.slices())) << "sorted and tightened";

    const auto parts = random_partition(tokens, 1 + random() % 5, random);
    Bitmap covered(tokens, tokens);
    for (const auto& q_runs : parts) {
      for (const auto& k_runs : parts) {
        const std::vector<Slice> bands = cut(mask, q_runs, k_runs);
        add_pairs(covered, bands, q_runs, k_runs);
        ASSERT_EQ(any_visible(mask, q_runs, k_runs), area(bands) > 0);
        ++cuts;
      }
    }
    ASSERT_EQ(covered, map);
    // All parts in one view, as where ranks have exchanged heads for tokens.
    std::vector<TokenRun> all;
    for (const auto& runs : parts) all.insert(all.end(), runs.begin(), runs.end());
    Bitmap joined(tokens, tokens);
    add_pairs(joined, cut(mask, all, all), all, all);
    ASSERT_EQ(joined, map);
  }
  EXPECT_EQ(overlapping + masks, kSets);
  EXPECT_GT(overlapping, kSets / 10);
  std::printf("%d slice sets: %d overlap; %d masks of %ld slices and %ld pairs, %ld cuts\n", kSets,
              overlapping, masks, slices_seen, pairs, cuts);
}

/// Mixed strides either give the exact bands or are refused, and then a pair is visible.
TEST(Cut, UnequalStridesAreExactOrRefused) {
  std::mt19937 random(4);
  int refused = 0, exact = 0;
  for (int round = 0; round < 50'000; ++round) {
    const std::int64_t tokens = 8 + random() % 16;
    const Mask mask = Mask::from_slices(tokens, random_disjoint_slices(tokens, tokens, 2, random));
    const auto strided = [&] {
      const std::int64_t first = random() % static_cast<std::uint64_t>(tokens),
                         stride = 1 + random() % 4;
      const std::int64_t most = (tokens - first + stride - 1) / stride;
      return TokenRun{first,
                      static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most + 1)),
                      stride};
    };
    const std::vector<TokenRun> q_runs{strided()}, k_runs{strided()};
    const auto queries = tokens_of(q_runs), keys = tokens_of(k_runs);
    const auto rows = static_cast<std::int64_t>(queries.size()),
               columns = static_cast<std::int64_t>(keys.size());
    const Bitmap global(tokens, tokens, mask.slices());
    Bitmap expected(rows, columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        expected.at(i, j) =
            global.at(queries[static_cast<std::size_t>(i)], keys[static_cast<std::size_t>(j)]);
      }
    }
    ASSERT_EQ(any_visible(mask, q_runs, k_runs), expected.sum() > 0);
    std::optional<std::vector<Slice>> bands;
    try {
      bands = cut(mask, q_runs, k_runs);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ExitCode::config);
      ASSERT_NE(q_runs[0].stride, k_runs[0].stride);
      ASSERT_GT(std::min(q_runs[0].count, k_runs[0].count), 1);
      ASSERT_GT(expected.sum(), 0);
      ++refused;
    }
    if (bands) {
      ASSERT_EQ(Bitmap(rows, columns, *bands), expected);
      exact += q_runs[0].stride != k_runs[0].stride && expected.sum() > 0;
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(exact, 1000);
}

TEST(Cut, JoinsBandsThatFormOne) {
  // Both zigzag chunks of the last of two ranks: tokens 2..5 are one causal triangle.
  const std::vector<TokenRun> runs{{2, 2, 1}, {4, 2, 1}};
  EXPECT_EQ(cut(Mask::causal(8), runs, runs), (std::vector<Slice>{{0, 4, 0, 4, -3, 0}}));
  const std::vector<TokenRun> first{{0, 2, 1}, {6, 2, 1}};
  EXPECT_EQ(cut(Mask::causal(8), first, first), (std::vector<Slice>{{0, 4, 0, 4, -3, 0}}));
  EXPECT_EQ(cut(Mask::full(8), first, runs), (std::vector<Slice>{{0, 4, 0, 4, -3, 3}}));
}

TEST(Cut, IsFastForManyRanksAndDocuments) {
  std::vector<std::int64_t> offsets(8'001);
  for (std::size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<std::int64_t>(i) * 131;
  const Mask mask = Mask::documents(offsets);
  const std::int64_t ranks = 512, chunks = 2 * ranks;
  const auto start = std::chrono::steady_clock::now();
  std::int64_t sum = 0;
  for (std::int64_t q = 0; q < ranks; ++q) {
    for (std::int64_t k = 0; k < ranks; ++k) {
      const auto runs = [&](std::int64_t rank) {
        const auto chunk = [&](std::int64_t c) {
          const std::int64_t begin = c * mask.tokens() / chunks,
                             end = (c + 1) * mask.tokens() / chunks;
          return TokenRun{begin, end - begin, 1};
        };
        return std::array<TokenRun, 2>{chunk(rank), chunk(chunks - 1 - rank)};
      };
      sum += area(cut(mask, runs(q), runs(k)));
    }
  }
  EXPECT_EQ(sum, mask.area());
  // 262,144 cuts; visiting all documents in each would be 4e9 steps.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
}

}  // namespace
}  // namespace longhaul::attention

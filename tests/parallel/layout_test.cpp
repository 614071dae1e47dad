#include "parallel/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/random_masks.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using enum LayoutKind;
using Tokens = std::vector<std::int64_t>;

struct NamedMasks {
  const char* name;
  HeadMasks masks;
};

/// Documents of 0, 1 and a prime number of tokens, cut to `tokens`.
Mask ragged_documents(std::int64_t tokens) {
  const std::int64_t lengths[] = {0, 1, 7, 1, 2, 127, 0, 13, 61, 3, 1, 1, 211, 5};
  Tokens offsets{0};
  for (std::size_t i = 0; offsets.back() < tokens; ++i)
    offsets.push_back(std::min(tokens, offsets.back() + lengths[i % std::size(lengths)]));
  return Mask::documents(offsets);
}

Mask window(std::int64_t tokens, std::int64_t width) {
  return Mask::from_slices(tokens, {{0, tokens, 0, tokens, 1 - width, 0}});
}

Mask random_mask(std::int64_t tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  return Mask::from_slices(tokens, test::random_disjoint_slices(tokens, tokens, 6, random));
}

std::vector<NamedMasks> every_mask(std::int64_t tokens) {
  return {{"full", Mask::full(tokens)},
          {"causal", Mask::causal(tokens)},
          {"documents", ragged_documents(tokens)},
          {"single tokens", window(tokens, 1)},
          {"window", window(tokens, 9)},
          {"empty", Mask::from_slices(tokens, {})},
          {"random slices", random_mask(tokens, 1)},
          {"per head", HeadMasks::per_head({Mask::causal(tokens), window(tokens, 5),
                                            window(tokens, 5), random_mask(tokens, 2)})}};
}

/// Rank of every token; fails where a token has none or several.
std::vector<int> owners(const Layout& layout) {
  std::vector<int> owner(static_cast<std::size_t>(layout.tokens()), -1);
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const Tokens tokens = layout.tokens_of(rank);
    EXPECT_EQ(static_cast<std::int64_t>(tokens.size()), layout.rows(rank));
    for (const std::int64_t token : tokens) {
      if (token < 0 || token >= layout.tokens()) {
        ADD_FAILURE() << "token " << token << " of " << layout.tokens();
        continue;
      }
      int& mine = owner[static_cast<std::size_t>(token)];
      EXPECT_EQ(mine, -1) << "token " << token << " twice";
      mine = rank;
    }
  }
  EXPECT_EQ(std::ranges::count(owner, -1), 0);
  return owner;
}

std::int64_t row_difference(const Layout& layout) {
  std::int64_t least = layout.rows(0), most = layout.rows(0);
  for (int rank = 1; rank < layout.ranks(); ++rank) {
    least = std::min(least, layout.rows(rank));
    most = std::max(most, layout.rows(rank));
  }
  return most - least;
}

TEST(Layout, EveryTokenLiesOnExactlyOneRank) {
  for (const std::int64_t seq_len : {0, 1, 2, 7, 127, 1000, 1021}) {
    for (const auto& [mask_name, masks] : every_mask(seq_len)) {
      for (const std::int64_t batch : {1, 3}) {
        const HeadMasks repeated = masks.repeated(batch);
        for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 13, 32}) {
          for (const LayoutKind kind : layout_kinds()) {
            SCOPED_TRACE(runtime::concat(name(kind), ", ", mask_name, ", ", batch, " x ", seq_len,
                                         " tokens, P=", ranks));
            const Layout layout = Layout::make(kind, repeated, batch, ranks);
            ASSERT_EQ(layout.ranks(), ranks);
            EXPECT_EQ(layout.seq_len(), seq_len);
            EXPECT_EQ(layout.batch(), batch);
            owners(layout);
            for (int rank = 0; rank < ranks; ++rank) {
              std::int64_t before = -1;
              for (const auto& run : layout.runs(rank)) {
                EXPECT_GT(run.count, 0);
                EXPECT_GT(run.first, before);  // rising; of mask layouts, runs that touch are one
                before = run.first + (run.count - 1) * run.stride + (depends_on_mask(kind) ? 1 : 0);
              }
            }
            if (depends_on_mask(kind)) {
              EXPECT_LE(row_difference(layout), 1);
            }
            if (kind == contiguous) {
              EXPECT_LE(row_difference(layout), batch);
            }
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Layout, ShardsDifferByFewTokensAndSequencesFollowEachOther) {
  for (const LayoutKind kind : {contiguous, zigzag, striped}) {
    const Layout layout(kind, 1003, 2, 7);
    const Layout one(kind, 1003, 1, 7);
    for (int rank = 0; rank < 7; ++rank) {
      EXPECT_NEAR(static_cast<double>(one.rows(rank)), 1003.0 / 7, 2.0);
      const auto both = layout.tokens_of(rank), first = one.tokens_of(rank);
      for (std::size_t i = 0; i < first.size(); ++i) {
        EXPECT_EQ(both[i], first[i]);
        EXPECT_EQ(both[first.size() + i], first[i] + 1003);
      }
    }
  }
}

TEST(Layout, KnownShapes) {
  EXPECT_EQ(Layout(zigzag, 16, 1, 4).tokens_of(1), (Tokens{2, 3, 12, 13}));
  EXPECT_EQ(Layout(zigzag, 16, 1, 4).runs(3).size(), 1u);  // chunks 3 and 4 touch
  EXPECT_EQ(Layout(striped, 7, 1, 3).tokens_of(0), (Tokens{0, 3, 6}));
  EXPECT_EQ(Layout(contiguous, 7, 1, 3).tokens_of(2), (Tokens{4, 5, 6}));
  // Two documents of 8 and 4 tokens over 2 ranks; one of 3 deals its last token to either.
  const Layout documents = Layout::make(document_zigzag, Mask::documents(Tokens{0, 8, 12}), 1, 2);
  EXPECT_EQ(documents.tokens_of(0), (Tokens{0, 1, 6, 7, 8, 11}));
  EXPECT_EQ(documents.tokens_of(1), (Tokens{2, 3, 4, 5, 9, 10}));
  // Over one causal sequence both are the zigzag, which is perfect.
  for (const LayoutKind kind : {document_zigzag, balanced}) {
    const Layout whole = Layout::make(kind, Mask::causal(1024), 1, 4);
    for (int rank = 0; rank < 4; ++rank)
      EXPECT_EQ(whole.runs(rank), Layout(zigzag, 1024, 1, 4).runs(rank)) << name(kind);
  }
  // A mask that is even already needs no more than one chunk a rank.
  EXPECT_EQ(Layout::make(balanced, Mask::full(96), 1, 3).runs(1),
            Layout(contiguous, 96, 1, 3).runs(1));
}

TEST(Layout, OnlyTheMaskMakesTheLayoutsThatFollowFromIt) {
  for (const LayoutKind kind : layout_kinds()) {
    if (depends_on_mask(kind)) {
      test::expect_error(runtime::ExitCode::internal, "Layout::make",
                         [&] { Layout(kind, 16, 1, 2); });
      continue;
    }
    const Layout direct(kind, 37, 3, 4), made = Layout::make(kind, Mask::causal(111), 3, 4);
    EXPECT_EQ(made.seq_len(), 37);
    for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(made.runs(rank), direct.runs(rank));
    EXPECT_EQ(made.digest(), direct.digest());
  }
  test::expect_error(runtime::ExitCode::internal, "2 sequences",
                     [] { Layout::make(balanced, Mask::causal(7), 2, 2); });
}

TEST(Layout, DigestsTellLayoutsApart) {
  std::vector<std::uint64_t> digests;
  for (const LayoutKind kind : layout_kinds()) {
    for (const int ranks : {2, 3}) {
      for (const std::int64_t tokens : {64, 66}) {
        const Layout layout = Layout::make(kind, ragged_documents(tokens), 1, ranks);
        EXPECT_EQ(layout.digest(), Layout::make(kind, ragged_documents(tokens), 1, ranks).digest());
        digests.push_back(layout.digest());
      }
    }
  }
  // Two ranks hold the same tokens, the other way round.
  const Layout a = Layout::make(document_zigzag, Mask::documents(Tokens{0, 1, 2}), 1, 2);
  const Layout b = Layout::make(document_zigzag, Mask::documents(Tokens{0, 1, 2, 3, 4}), 1, 2);
  digests.push_back(a.digest());
  digests.push_back(b.digest());
  std::ranges::sort(digests);
  EXPECT_EQ(std::ranges::adjacent_find(digests), digests.end());
}

TEST(Layout, UnknownNameListsTheKnownOnes) {
  test::expect_error(runtime::ExitCode::config,
                     "contiguous, zigzag, striped, document_zigzag, balanced, packed",
                     [] { layout_from_name("zigzga"); });
}

// ---- document_zigzag
// ---------------------------------------------------------------------------------------------

/// Whether tokens before `border` and from it on share no pair, pair by pair.
bool is_border(const HeadMasks& masks, std::int64_t border) {
  for (const HeadMasks::Group& group : masks.groups()) {
    const test::Bitmap visible(masks.tokens(), masks.tokens(), group.mask.slices());
    for (std::int64_t i = 0; i < masks.tokens(); ++i) {
      for (std::int64_t j = 0; j < masks.tokens(); ++j) {
        if ((i < border) != (j < border) && visible.at(i, j) != 0) return false;
      }
    }
  }
  return true;
}

TEST(IndependentParts, AreTheFinestCutThatNoPairCrosses) {
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    const auto tokens = static_cast<std::int64_t>(random() % 24);
    std::vector<Mask> heads;
    for (int head = 0; head <= round % 3; ++head) {
      heads.push_back(Mask::from_slices(
          tokens, test::random_disjoint_slices(tokens, tokens, 1 + round % 4, random)));
    }
    // Narrow bands, which random ones seldom are.
    if (round % 5 == 0 && tokens > 1) {
      const std::int64_t lo = static_cast<std::int64_t>(random() % 5) - 2;
      heads = {Mask::from_slices(tokens, {{0, tokens, 0, tokens, lo, lo + round % 2}})};
    }
    const HeadMasks masks = HeadMasks::per_head(heads);
    Tokens expected{0};
    for (std::int64_t border = 1; border <= tokens; ++border) {
      if (border == tokens || is_border(masks, border)) expected.push_back(border);
    }
    ASSERT_EQ(attention::independent_parts(masks), expected) << "round " << round;
  }
}

TEST(DocumentZigzag, CutsEveryDocumentIn2PNearlyEqualChunks) {
  const HeadMasks masks = ragged_documents(1021);
  const Tokens offsets = attention::independent_parts(masks);
  for (const int ranks : {1, 2, 3, 5, 8, 13, 32}) {
    const std::vector<int> owner = owners(Layout::make(document_zigzag, masks, 1, ranks));
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
      // Ranks go up 0..P-1 and come down again; each chunk has base or base + 1 tokens.
      const std::int64_t base = (offsets[d + 1] - offsets[d]) / (2 * ranks);
      std::int64_t token = offsets[d];
      const auto count = [&](int rank, std::int64_t most) {
        std::int64_t n = 0;
        for (; n < most && token < offsets[d + 1] && owner[static_cast<std::size_t>(token)] == rank;
             ++token)
          ++n;
        return n;
      };
      for (int rank = 0; rank + 1 < ranks; ++rank) EXPECT_GE(count(rank, base + 1), base);
      EXPECT_GE(count(ranks - 1, 2 * base + 2), 2 * base);  // its two chunks touch
      for (int rank = ranks - 2; rank >= 0; --rank) EXPECT_GE(count(rank, base + 1), base);
      EXPECT_EQ(token, offsets[d + 1]) << "P=" << ranks << " document " << d;
    }
  }
}

// ---- areas
// -------------------------------------------------------------------------------------------------------

Tokens areas_pair_by_pair(const HeadMasks& masks, const Layout& layout) {
  Tokens areas(static_cast<std::size_t>(layout.ranks()), 0);
  const std::vector<int> owner = owners(layout);
  for (const HeadMasks::Group& group : masks.groups()) {
    const test::Bitmap visible(masks.tokens(), masks.tokens(), group.mask.slices());
    const std::int64_t heads = masks.shared() ? 1 : group.head_end - group.head_begin;
    for (std::int64_t i = 0; i < masks.tokens(); ++i) {
      for (std::int64_t j = 0; j < masks.tokens(); ++j)
        areas[static_cast<std::size_t>(owner[static_cast<std::size_t>(i)])] +=
            heads * visible.at(i, j);
    }
  }
  return areas;
}

TEST(QueryAreas, EqualTheBitmaps) {
  for (const auto& [mask_name, masks] : every_mask(211)) {
    for (const LayoutKind kind : layout_kinds()) {
      const Layout layout = Layout::make(kind, masks, 1, 5);
      EXPECT_EQ(query_areas(masks, layout), areas_pair_by_pair(masks, layout))
          << name(kind) << ", " << mask_name;
    }
  }
}

double largest_over_mean(const Tokens& areas) {
  const auto total = std::accumulate(areas.begin(), areas.end(), std::int64_t{0});
  return static_cast<double>(*std::ranges::max_element(areas)) * static_cast<double>(areas.size()) /
         static_cast<double>(total);
}

double imbalance(LayoutKind kind, const HeadMasks& masks, int ranks) {
  return largest_over_mean(query_areas(masks, Layout::make(kind, masks, 1, ranks)));
}

TEST(Balance, OfCausalAndWindowMasksIsThePublishedTable) {
  const Mask causal = Mask::causal(8192);
  for (const int ranks : {8, 32}) {
    EXPECT_NEAR(imbalance(contiguous, causal, ranks), 2 - 1.0 / ranks, 5e-4);
    EXPECT_NEAR(imbalance(zigzag, causal, ranks), 1, 1e-12);
    EXPECT_NEAR(imbalance(striped, causal, ranks), ranks == 8 ? 1.0009 : 1.004, 5e-4 * ranks / 32);
    EXPECT_LE(imbalance(document_zigzag, causal, ranks), 1 + 1e-12);
    EXPECT_LE(imbalance(balanced, causal, ranks), 1 + 1e-12);
  }
  for (const std::int64_t width : {64, 256, 1024}) {
    const Mask mask = window(8192, width);
    EXPECT_LE(imbalance(contiguous, mask, 8), 1.07);
    EXPECT_LE(imbalance(zigzag, mask, 8), 1.07);
    EXPECT_LE(imbalance(striped, mask, 8), 1.002);
    EXPECT_LE(imbalance(balanced, mask, 8), kBalanceTarget);
  }
}

TEST(Balance, SwapsWhatDealingDearestFirstMisses) {
  // Rows of eight pieces see so many keys, times eight. Dealt dearest first over two ranks they are
  // 7 against 5; swapping a 3 for a 2 makes both 6.
  const std::int64_t keys[] = {3, 2, 3, 2, 2, 0, 0, 0};
  std::vector<attention::Slice> slices;
  for (std::int64_t i = 0; i < 8; ++i) slices.push_back({16 * i, 16 * i + 16, 0, 8 * keys[i]});
  const HeadMasks masks = Mask::from_slices(128, slices);
  const Layout layout = Layout::make(balanced, masks, 1, 2);
  EXPECT_EQ(layout.chunk_tokens(), 16);
  EXPECT_EQ(areas_pair_by_pair(masks, layout), (Tokens{6 * 8 * 16, 6 * 8 * 16}));
}

TEST(Balance, CountsEveryHead) {
  // The heads' dear ends are opposite: balance of one is not balance of all.
  const std::int64_t tokens = 1024;
  const Mask late = Mask::causal(tokens);
  const Mask early = Mask::from_slices(tokens, {{0, tokens, 0, tokens, 0, attention::kUnbounded}});
  for (const int ranks : {3, 8}) {
    const HeadMasks masks = HeadMasks::per_head({late, early, early, early, late, early});
    const Layout layout = Layout::make(balanced, masks, 1, ranks);
    EXPECT_LE(largest_over_mean(areas_pair_by_pair(masks, layout)), kBalanceTarget);
  }
}

}  // namespace
}  // namespace longhaul::parallel

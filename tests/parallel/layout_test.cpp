#include "parallel/layout.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

constexpr LayoutKind kAll[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped};

TEST(Layout, EveryTokenLiesOnExactlyOneRank) {
  for (const LayoutKind kind : kAll) {
    for (const std::int64_t seq_len : {0, 1, 2, 7, 13, 127, 128, 1000}) {
      for (const std::int64_t batch : {1, 3}) {
        for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 33}) {
          const Layout layout(kind, seq_len, batch, ranks);
          std::set<std::int64_t> seen;
          for (int rank = 0; rank < ranks; ++rank) {
            const auto tokens = layout.tokens_of(rank);
            EXPECT_EQ(static_cast<std::int64_t>(tokens.size()), layout.rows(rank));
            for (const std::int64_t token : tokens) {
              EXPECT_TRUE(seen.insert(token).second)
                  << name(kind) << " token " << token << " twice";
              EXPECT_GE(token, 0);
              EXPECT_LT(token, seq_len * batch);
            }
            for (const auto& run : layout.runs(rank)) EXPECT_GT(run.count, 0);
          }
          EXPECT_EQ(static_cast<std::int64_t>(seen.size()), seq_len * batch)
              << name(kind) << " P=" << ranks;
        }
      }
    }
  }
}

TEST(Layout, ShardsDifferByFewTokensAndSequencesFollowEachOther) {
  for (const LayoutKind kind : kAll) {
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
  EXPECT_EQ(Layout(LayoutKind::zigzag, 16, 1, 4).tokens_of(1),
            (std::vector<std::int64_t>{2, 3, 12, 13}));
  EXPECT_EQ(Layout(LayoutKind::zigzag, 16, 1, 4).runs(3).size(), 1u);  // chunks 3 and 4 touch
  EXPECT_EQ(Layout(LayoutKind::striped, 7, 1, 3).tokens_of(0),
            (std::vector<std::int64_t>{0, 3, 6}));
  EXPECT_EQ(Layout(LayoutKind::contiguous, 7, 1, 3).tokens_of(2),
            (std::vector<std::int64_t>{4, 5, 6}));
}

TEST(Layout, UnknownNameListsTheKnownOnes) {
  try {
    layout_from_name("zigzga");
    FAIL() << "accepted";
  } catch (const runtime::Error& error) {
    EXPECT_EQ(error.code(), runtime::ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("contiguous, zigzag or striped"), std::string::npos);
  }
}

}  // namespace
}  // namespace longhaul::parallel

// Layout packed, against the placement of the reference data's README and a deal of single tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

#include "parallel/layout.h"
#include "runtime/error.h"
#include "tests/support/balance_batches.h"
#include "tests/support/document_mixes.h"

namespace longhaul::parallel {
namespace {

using Tokens = std::vector<std::int64_t>;

Layout packed(const Tokens& lengths, int ranks) {
  Tokens offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return Layout::make(LayoutKind::packed, attention::Mask::documents(offsets), 1, ranks);
}

/// Tokens [begin, end) that a server holds.
struct Range {
  std::int64_t begin = 0, end = 0;
  bool operator==(const Range&) const = default;
};

TEST(LayoutPacked, PlacesThePublishedBatchesAsTheirReadmeSays) {
  const std::string file = "balance_batches_open.csv.gz";
  if (!test::reference_data(file)) GTEST_SKIP() << test::no_reference_data(file);
  for (const auto& batch : test::read_balance_batches(*test::reference_data(file))) {
    SCOPED_TRACE(runtime::concat(batch.cell(), ", batch ", batch.batch));
    std::vector<std::vector<Range>> expected(static_cast<std::size_t>(batch.servers));
    std::size_t server = 0;
    std::int64_t room = batch.context, document = 0;
    for (const std::int64_t length : batch.lengths) {
      std::int64_t front = document, back = document + length;
      document += length;
      while (front < back) {
        if (room == 0) {
          ++server;
          room = batch.context;
        }
        if (back - front <= room) {  // whole, or all that is left
          room -= back - front;
          expected.at(server).push_back({front, back});
          break;
        }
        const std::int64_t h = room / 2;
        expected.at(server).push_back({front, front + h});
        expected.at(server).push_back({back - (room - h), back});
        front += h;
        back -= room - h;
        room = 0;
      }
    }
    const Layout layout = packed(batch.lengths, batch.servers);
    for (int rank = 0; rank < batch.servers; ++rank) {
      // Both as single documents' ranges, in order: runs join what lies together.
      std::vector<Range> joined;
      for (const Range& range : expected[static_cast<std::size_t>(rank)]) {
        if (!joined.empty() && joined.back().end == range.begin) {
          joined.back().end = range.end;
        } else {
          joined.push_back(range);
        }
      }
      std::vector<Range> held;
      for (const attention::Run& run : layout.runs(rank)) {
        ASSERT_EQ(run.stride, 1);
        held.push_back({run.first, run.first + run.count});
      }
      ASSERT_EQ(held, joined) << "rank " << rank;
    }
  }
}

/// Dealt token by token: while a rank has room it takes a document's, in turns that end with as
/// many from the front as from the back, or one more from the back; all of it in front if all fits.
std::vector<Tokens> deal(const Tokens& lengths, int ranks) {
  std::int64_t tokens = 0;
  for (const std::int64_t length : lengths) tokens += length;
  std::vector<Tokens> held(static_cast<std::size_t>(ranks));
  std::int64_t rank = 0, first = 0;
  const auto room = [&] {
    return tokens * (rank + 1) / ranks - tokens * rank / ranks -
           std::ssize(held[static_cast<std::size_t>(rank)]);
  };
  for (const std::int64_t length : lengths) {
    std::deque<std::int64_t> document;
    for (std::int64_t i = 0; i < length; ++i) document.push_back(first + i);
    first += length;
    while (!document.empty()) {
      while (room() == 0) ++rank;
      Tokens& mine = held[static_cast<std::size_t>(rank)];
      const bool fits = std::ssize(document) <= room();
      Tokens tail;
      for (std::int64_t left = fits ? std::ssize(document) : room(); left > 0; --left) {
        if (fits || left % 2 == 0) {
          mine.push_back(document.front());
          document.pop_front();
        } else {
          tail.push_back(document.back());
          document.pop_back();
        }
      }
      mine.insert(mine.end(), tail.rbegin(), tail.rend());
    }
  }
  return held;
}

TEST(LayoutPacked, DealsAnyLengthsOverAnyRanks) {
  std::mt19937_64 random(5);
  const std::int64_t nasty[] = {0, 1, 2, 3, 7, 61, 127, 128, 129, 383, 1009};
  for (int trial = 0; trial < 400; ++trial) {
    Tokens lengths(random() % 12);
    for (std::int64_t& length : lengths) length = nasty[random() % std::size(nasty)];
    const int ranks = std::array{1, 2, 3, 5, 7, 16, 61}[random() % 7];
    SCOPED_TRACE(runtime::concat("trial ", trial, ", ", ranks, " ranks"));
    const Layout layout = packed(lengths, ranks);
    const std::vector<Tokens> expected = deal(lengths, ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      const Tokens held = layout.tokens_of(rank);
      ASSERT_EQ(held, expected[static_cast<std::size_t>(rank)]) << "rank " << rank;
      ASSERT_TRUE(std::ranges::is_sorted(held));
      ASSERT_LE(layout.tokens() / ranks, layout.rows(rank));
      ASSERT_LE(layout.rows(rank), (layout.tokens() + ranks - 1) / ranks);
    }
  }
}

TEST(LayoutPacked, EmptyRanksComeLast) {
  const Layout without = packed({127, 1, 61, 7}, 3), with = without.with_empty_ranks(2);
  EXPECT_EQ(with.ranks(), 5);
  EXPECT_EQ(with.tokens(), without.tokens());
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(with.runs(rank), without.runs(rank));
  for (int rank = 3; rank < 5; ++rank) {
    EXPECT_EQ(with.rows(rank), 0);
    EXPECT_TRUE(with.tokens_of(rank).empty());
  }
  EXPECT_NE(with.digest(), without.digest());
  EXPECT_EQ(without.with_empty_ranks(0).digest(), without.digest());
  EXPECT_THROW(without.with_empty_ranks(-1), runtime::Error);
}

}  // namespace
}  // namespace longhaul::parallel

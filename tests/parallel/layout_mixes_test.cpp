// The balance of packed documents: published length mixes, and a made-up one that is always there.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "parallel/layout.h"
#include "runtime/error.h"
#include "tests/support/document_mixes.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using Offsets = std::vector<std::int64_t>;

/// Keys that each token sees.
std::vector<std::int64_t> costs(const Offsets& documents) {
  std::vector<std::int64_t> cost;
  for (std::size_t d = 0; d + 1 < documents.size(); ++d) {
    for (std::int64_t i = documents[d]; i < documents[d + 1]; ++i)
      cost.push_back(i - documents[d] + 1);
  }
  return cost;
}

/// Largest over mean of the ranks' causal areas, token by token.
double imbalance(const Offsets& documents, const Layout& layout) {
  const std::vector<std::int64_t> cost = costs(documents);
  std::vector<std::int64_t> areas;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    areas.push_back(0);
    for (const std::int64_t token : layout.tokens_of(rank))
      areas.back() += cost[static_cast<std::size_t>(token)];
  }
  const std::int64_t total = std::accumulate(areas.begin(), areas.end(), std::int64_t{0});
  EXPECT_EQ(total, std::accumulate(cost.begin(), cost.end(), std::int64_t{0}));
  return static_cast<double>(*std::ranges::max_element(areas)) * layout.ranks() /
         static_cast<double>(total);
}

std::vector<int> owners(const Layout& layout) {
  std::vector<int> owner(static_cast<std::size_t>(layout.tokens()));
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    for (const std::int64_t token : layout.tokens_of(rank))
      owner[static_cast<std::size_t>(token)] = rank;
  }
  return owner;
}

/// Owners when the dearest chunk goes to the emptiest rank with room, whatever that holds.
std::vector<int> owners_without_affinity(const Offsets& documents, int ranks, std::int64_t chunk) {
  const std::vector<std::int64_t> cost = costs(documents);
  const std::size_t size = static_cast<std::size_t>(chunk), count = cost.size() / size;
  std::vector<std::int64_t> weight;
  for (std::size_t c = 0; c < count; ++c)
    weight.push_back(std::accumulate(cost.begin() + static_cast<std::ptrdiff_t>(c * size),
                                     cost.begin() + static_cast<std::ptrdiff_t>((c + 1) * size),
                                     std::int64_t{0}));
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](auto a, auto b) { return weight[a] > weight[b]; });
  std::vector<std::int64_t> load(static_cast<std::size_t>(ranks)), held(load.size());
  std::vector<int> owner(cost.size());
  for (const std::size_t c : order) {
    std::size_t to = load.size();
    for (std::size_t rank = 0; rank < load.size(); ++rank) {
      if (held[rank] * ranks < static_cast<std::int64_t>(count) &&
          (to == load.size() || load[rank] < load[to]))
        to = rank;
    }
    load[to] += weight[c];
    ++held[to];
    std::fill_n(owner.begin() + static_cast<std::ptrdiff_t>(c * size), chunk, static_cast<int>(to));
  }
  return owner;
}

/// Keys of other ranks that the ranks' queries see, over the number of tokens.
double foreign_keys(const Offsets& documents, const std::vector<int>& owner, int ranks) {
  std::int64_t foreign = 0;
  std::vector<std::int64_t> last(static_cast<std::size_t>(ranks)), own(last.size());
  for (std::size_t d = 0; d + 1 < documents.size(); ++d) {
    std::ranges::fill(last, documents[d]);
    std::ranges::fill(own, 0);
    for (std::int64_t i = documents[d]; i < documents[d + 1]; ++i) {
      const auto rank = static_cast<std::size_t>(owner[static_cast<std::size_t>(i)]);
      last[rank] = i + 1;
      ++own[rank];
    }
    for (std::size_t rank = 0; rank < own.size(); ++rank)
      foreign += last[rank] - documents[d] - own[rank];
  }
  return static_cast<double>(foreign) / static_cast<double>(owner.size());
}

void expect_balance(const std::vector<std::int64_t>& lengths) {
  double solved_keys = 0, dealt_keys = 0, plain_keys = 0;
  for (const std::int64_t seq_len : {131072, 262144, 524288, 1048576}) {
    for (const Offsets& documents : test::pack(lengths, seq_len, 4)) {
      const attention::HeadMasks masks = Mask::documents(documents);
      for (const int ranks : {4, 8, 16, 32}) {
        SCOPED_TRACE(
            runtime::concat(seq_len, " tokens, ", documents.size() - 1, " documents, P=", ranks));
        const Layout solved = Layout::make(LayoutKind::balanced, masks, 1, ranks);
        const Layout dealt = Layout::make(LayoutKind::document_zigzag, masks, 1, ranks);
        EXPECT_LE(imbalance(documents, solved), kBalanceTarget);
        // A rank's surplus in a document is one row, dealt against its area so far: the difference
        // stays below two rows of the longest document.
        const auto longest = [&] {
          std::int64_t most = 0;
          for (std::size_t d = 0; d + 1 < documents.size(); ++d)
            most = std::max(most, documents[d + 1] - documents[d]);
          return most;
        }();
        const double mean = static_cast<double>(masks.area(1)) / static_cast<double>(ranks);
        EXPECT_LE(imbalance(documents, dealt), 1 + 2.0 * static_cast<double>(longest) / mean);
        for (const Layout& layout : {solved, dealt}) {
          for (int rank = 0; rank < ranks; ++rank) {
            EXPECT_GE(layout.rows(rank), seq_len / ranks);
            EXPECT_LE(layout.rows(rank), (seq_len + ranks - 1) / ranks);
          }
        }
        // Documents stay together where balance allows; zigzag spreads each over all ranks.
        const double seen = foreign_keys(documents, owners(solved), ranks),
                     most = foreign_keys(documents, owners(dealt), ranks);
        EXPECT_LE(seen, most);
        solved_keys += seen;
        dealt_keys += most;
        plain_keys += foreign_keys(
            documents, owners_without_affinity(documents, ranks, solved.chunk_tokens()), ranks);
      }
    }
  }
  EXPECT_LE(solved_keys, 0.5 * dealt_keys);
  EXPECT_LT(solved_keys, 0.95 * plain_keys);  // 0.8 to 0.9; 1.00 when affinity decides nothing
}

TEST(DocumentMix, MadeUpIsBalanced) { expect_balance(test::made_up_lengths(20000, 7)); }

class PublishedMix : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(DocumentMix, PublishedMix, ::testing::Values("wlb", "prolong"),
                         [](const auto& which) { return std::string(which.param); });

TEST_P(PublishedMix, IsBalanced) {
  const std::string file = std::string("document_lengths_") + GetParam() + ".txt";
  const auto path = test::reference_data(file);
  if (!path) GTEST_SKIP() << test::no_reference_data(file);
  expect_balance(test::read_lengths(*path));
}

}  // namespace
}  // namespace longhaul::parallel

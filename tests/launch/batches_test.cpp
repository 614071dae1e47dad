// Batches of models whose layers see different masks.
#include "launch/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kSeqLen = 1024, kWindow = 16;

/// One document of half a sequence, then documents of one token; and random ones. Where full layers
/// are balanced by the place in the long document, sliding ones go by the rows in it.
std::vector<runtime::Sequence> sequences() {
  runtime::Sequence skewed;
  skewed.tokens.assign(kSeqLen, 1);
  skewed.labels.assign(kSeqLen, 1);
  skewed.documents = {0};
  for (std::int64_t i = 0; i < kSeqLen; ++i) {
    skewed.positions.push_back(static_cast<std::int32_t>(i < kSeqLen / 2 ? i : 0));
    if (i + 1 >= kSeqLen / 2) skewed.documents.push_back(i + 1);
  }
  return {skewed, test::random_sequence(31, kSeqLen, 3)};
}

/// Pairs of this rank's queries in one full and `sliding` sliding layers, counted by the
/// definition.
std::vector<std::int64_t> pairs_of_ranks(const parallel::Layout& layout, std::int64_t full,
                                         std::int64_t sliding) {
  const std::vector<runtime::Sequence> all = sequences();
  std::vector<std::int64_t> pairs;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    pairs.push_back(0);
    for (const std::int64_t token : layout.tokens_of(rank)) {
      const std::int64_t position = all[static_cast<std::size_t>(token / kSeqLen)]
                                        .positions[static_cast<std::size_t>(token % kSeqLen)];
      pairs.back() += full * (position + 1) + sliding * std::min(position + 1, kWindow);
    }
  }
  return pairs;
}

double largest_over_mean(const std::vector<std::int64_t>& values) {
  const auto sum = std::accumulate(values.begin(), values.end(), std::int64_t{0});
  return static_cast<double>(*std::ranges::max_element(values)) *
         static_cast<double>(values.size()) / static_cast<double>(sum);
}

TEST(Batches, LayoutsBalanceTheSumOverLayers) {
  BatchShape shape;
  shape.data.mask = "documents";
  shape.layout = parallel::LayoutKind::balanced;
  for (const int ranks : {3, 4, 7}) {
    for (const std::int64_t sliding : {1, 40}) {
      SCOPED_TRACE(runtime::concat(ranks, " ranks, ", sliding, " sliding layers"));
      shape.ranks = ranks;
      shape.kinds = {{std::nullopt, 1}, {kWindow, sliding}};
      const LocalBatch batch = make_local_batch(sequences(), shape);
      const auto pairs = pairs_of_ranks(batch.layout, 1, sliding);
      EXPECT_LE(largest_over_mean(pairs), parallel::kBalanceTarget);
      ASSERT_EQ(batch.masks.size(), 2u);
      EXPECT_EQ(batch.masks[0].area() + sliding * batch.masks[1].area(),
                std::accumulate(pairs.begin(), pairs.end(), std::int64_t{0}));
    }
  }
}

TEST(Batches, DocumentsOfAllLayersArePartsOfADocumentZigzag) {
  // A window cuts no document: the layout is that of the full mask.
  BatchShape full, mixed;
  full.data.mask = mixed.data.mask = "documents";
  full.layout = mixed.layout = parallel::LayoutKind::document_zigzag;
  full.ranks = mixed.ranks = 4;
  full.kinds = {{std::nullopt, 3}};
  mixed.kinds = {{kWindow, 2}, {std::nullopt, 1}};
  EXPECT_EQ(make_local_batch(sequences(), mixed).layout.digest(),
            make_local_batch(sequences(), full).layout.digest());
}

}  // namespace
}  // namespace longhaul::launch

// The index logic of the CUDA kernels against the definition of a slice, pair by pair.
#include "attention/band_tiles.h"

#include <gtest/gtest.h>

#include "tests/support/random_masks.h"

namespace longhaul::attention::detail {
namespace {

TEST(BandTiles, RowsKeysAndCoverAreTheSlices) {
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    constexpr std::int64_t kQueries = 23, kKeys = 29;
    const Slice slice = tightened(longhaul::test::random_slice(kQueries, kKeys, random));
    const longhaul::test::Bitmap bitmap(kQueries, kKeys, std::span(&slice, 1));
    const Band band = to_band(slice);
    for (int trial = 0; trial < 40; ++trial) {
      const auto pick = [&](std::int64_t limit) {
        const auto begin = static_cast<std::int64_t>(random() % static_cast<unsigned>(limit));
        return Interval{
            begin,
            begin + 1 + static_cast<std::int64_t>(random() % static_cast<unsigned>(limit - begin))};
      };
      const Interval rows = pick(kQueries), keys = pick(kKeys);
      bool all = true;
      for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        for (std::int64_t key = keys.begin; key < keys.end; ++key) {
          const bool seen = bitmap.at(row, key) != 0;
          all = all && seen;
          // One row or one key: exact, as the kernels' masks need it.
          const Interval of_row = keys_seen(band, {row, row + 1}),
                         of_key = rows_seeing(band, {key, key + 1});
          EXPECT_EQ(of_row.begin <= key && key < of_row.end, seen);
          EXPECT_EQ(of_key.begin <= row && row < of_key.end, seen);
          if (!seen) continue;
          const Interval by_rows = keys_seen(band, rows), by_keys = rows_seeing(band, keys);
          EXPECT_TRUE(by_rows.begin <= key && key < by_rows.end);
          EXPECT_TRUE(by_keys.begin <= row && row < by_keys.end);
        }
      }
      EXPECT_EQ(covers(band, rows, keys), all);
    }
  }
}

}  // namespace
}  // namespace longhaul::attention::detail

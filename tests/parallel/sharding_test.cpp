// Who owns what, and which boxes of tensors that is, against every element counted one by one.
#include "parallel/sharding.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include "runtime/ops/gradient_norm.h"
#include "tests/support/host_tensors.h"

namespace longhaul::parallel {
namespace {

using runtime::ops::kNormChunk;

std::int64_t product(const std::vector<std::int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
}

/// Row-major positions of a block's elements in a tensor, in the block's row-major order.
std::vector<std::int64_t> positions(const std::vector<std::int64_t>& sizes,
                                    const std::vector<std::int64_t>& start,
                                    const std::vector<std::int64_t>& block) {
  std::vector<std::int64_t> all;
  for (std::int64_t element = 0; element < product(block); ++element) {
    std::int64_t rest = element, position = 0, stride = 1;
    for (std::size_t dim = sizes.size(); dim-- > 0;) {
      const std::int64_t index = start[dim] + rest % block[dim];
      if (index >= sizes[dim]) throw std::out_of_range("a box beyond its tensor");
      rest /= block[dim];
      position += index * stride;
      stride *= sizes[dim];
    }
    all.push_back(position);
  }
  return all;
}

TEST(BlocksOf, AreTheRangeInOrderAndFew) {
  std::mt19937_64 random(1);
  const auto draw = [&](std::int64_t below) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(below));
  };
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(1 + trial % 4));
    for (std::int64_t& size : sizes) size = std::array{1, 2, 3, 5, 7, 13, 19}[draw(7)];
    if (trial % 5 == 0) sizes[0] = 127;
    const std::int64_t elements = product(sizes);
    const std::int64_t wanted = std::array<std::int64_t, 6>{
        0, 1, 7, 127, elements, draw(elements)}[static_cast<std::size_t>(draw(6))];
    const std::int64_t length = std::min(wanted, elements);
    const std::int64_t begin = draw(elements - length + 1);
    const std::vector<Box> boxes = boxes_of(sizes, {begin, begin + length});
    EXPECT_LE(std::ssize(boxes), 2 * std::ssize(sizes) - 1);
    if (length == elements) {
      EXPECT_EQ(boxes, (std::vector<Box>{{std::vector<std::int64_t>(sizes.size(), 0), sizes}}));
    }
    std::vector<std::int64_t> found;
    for (const Box& box : boxes) {
      const auto inside = positions(sizes, box.start, box.sizes);
      EXPECT_FALSE(inside.empty());
      found.insert(found.end(), inside.begin(), inside.end());
    }
    std::vector<std::int64_t> expected(static_cast<std::size_t>(length));
    std::iota(expected.begin(), expected.end(), begin);
    ASSERT_EQ(found, expected) << testing::PrintToString(sizes) << " from " << begin;
  }
}

/// Tables whose groups are longer and shorter than a chunk, begin inside chunks and on them.
std::vector<ParameterTable> tables() {
  std::vector<ParameterTable> all(5);
  const auto add = [](ParameterTable& table, int group, std::vector<std::int64_t> sizes) {
    table.add({"p" + std::to_string(table.parameters().size()),
               std::move(sizes),
               Initialisation::ones,
               0,
               false,
               -1,
               group,
               {}});
  };
  add(all[0], 0, {1});
  for (int group = 0; group < 3; ++group) add(all[1], group, {kNormChunk / 4});
  for (int group = 0; group < 4; ++group) {
    add(all[2], group, {127, 127});
    add(all[2], group, {(group * 5 + 1) % 7 * 1009, 13});
    add(all[2], group, {7});
  }
  for (int group = 0; group < 3; ++group) add(all[3], group, {kNormChunk * (group + 1), 7});
  add(all[4], 0, {31, 64});
  for (int group = 1; group < 12; ++group) add(all[4], group, {group * 1013, 61, 3});
  add(all[4], 12, {64});
  return all;
}

TEST(Sharding, EveryChunkHasOneOwnerAndSharesAreEven) {
  for (const ParameterTable& table : tables()) {
    for (const int ranks : {1, 2, 3, 4, 5, 7, 64, 509}) {
      SCOPED_TRACE(std::to_string(table.elements()) + " elements over " + std::to_string(ranks));
      const Sharding sharding(table, ranks);
      const std::int64_t chunks = runtime::ops::norm_chunks(table.elements());
      std::vector<int> owner(static_cast<std::size_t>(chunks), -1);
      std::vector<std::int64_t> share(static_cast<std::size_t>(ranks), 0);
      std::int64_t covered = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        std::int64_t end = -1;
        for (const ElementRange& range : sharding.owned(rank)) {
          EXPECT_GT(range.elements(), 0);
          EXPECT_GT(range.begin, end);  // neighbours are joined
          end = range.end;
          EXPECT_EQ(range.begin % kNormChunk, 0);
          covered += range.elements();
          for (std::int64_t at = range.begin; at < range.end; at += kNormChunk) {
            EXPECT_EQ(std::exchange(owner[static_cast<std::size_t>(at / kNormChunk)], rank), -1);
            ++share[static_cast<std::size_t>(rank)];
          }
        }
      }
      EXPECT_EQ(covered, table.elements());
      EXPECT_EQ(std::ranges::count(owner, -1), 0);
      const auto [least, most] = std::ranges::minmax(share);
      EXPECT_LE(most - least, 1);
      EXPECT_EQ(std::min(most * kNormChunk, table.elements()),
                Sharding::largest_share(table.elements(), ranks));
      std::int64_t begin = 0;
      for (const Bucket& bucket : sharding.buckets()) {
        EXPECT_EQ(bucket.range.begin, begin);
        EXPECT_GT(bucket.range.elements(), 0);
        begin = bucket.range.end;
        const auto [fewest, largest] = std::ranges::minmax(bucket.counts);
        EXPECT_LT(largest - fewest, 2 * kNormChunk);
        EXPECT_EQ(std::accumulate(bucket.counts.begin(), bucket.counts.end(), std::int64_t{0}),
                  bucket.range.elements());
        for (int rank = 0; rank < ranks; ++rank) {
          if (bucket.counts[static_cast<std::size_t>(rank)] > 0) {
            EXPECT_EQ(owner[static_cast<std::size_t>(bucket.owned(rank).begin / kNormChunk)], rank);
          }
        }
      }
      EXPECT_EQ(begin, table.elements());
      // A finished group leaves less than a chunk to wait for the group before it.
      for (int group = 0; group < table.groups(); ++group) {
        const std::int64_t first = table.group_range(group).begin;
        std::int64_t reduced = table.elements();
        for (const Bucket& bucket : sharding.buckets()) {
          if (bucket.range.begin >= first) reduced = std::min(reduced, bucket.range.begin);
        }
        EXPECT_LT(reduced - first, kNormChunk);
      }
    }
  }
}

TEST(StateBoxs, AreTheElementsOfTheirTensors) {
  const runtime::Stream stream = runtime::Stream::cpu("one");
  std::mt19937_64 random(2);
  for (const ParameterTable& table : tables()) {
    // Some pieces between random cuts.
    const auto ranges = [&](std::int64_t pieces) {
      std::vector<std::int64_t> cuts{0, table.elements()};
      for (std::int64_t i = 0; i < 2 * pieces; ++i) {
        cuts.push_back(
            static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(table.elements() + 1)));
      }
      std::ranges::sort(cuts);
      std::vector<ElementRange> result;
      for (std::size_t i = random() % 2; i + 1 < cuts.size(); i += 1 + random() % 2)
        result.push_back({cuts[i], cuts[i + 1]});
      return result;
    };
    for (int trial = 0; trial < 4; ++trial) {
      // The state's values are their places in the table's storage.
      FlatState state{"state.", {}, ranges(trial)};
      std::vector<double> places;
      std::vector<int> expected(static_cast<std::size_t>(table.elements()), 0), found = expected;
      const std::vector<ElementRange> wanted = ranges(3 - trial);
      for (const ElementRange& range : state.ranges) {
        for (std::int64_t i = range.begin; i < range.end; ++i) {
          places.push_back(static_cast<double>(i));
          for (const ElementRange& want : wanted) {
            if (want.begin <= i && i < want.end) expected[static_cast<std::size_t>(i)] = 1;
          }
        }
      }
      const runtime::Tensor elements =
          test::make_tensor(places, {std::ssize(places)}, runtime::DType::float32, stream);
      state.elements = elements;
      for (const StateBox& block : state_boxes(table, state, wanted)) {
        ASSERT_TRUE(block.name.starts_with("state.p")) << block.name;
        const Parameter& parameter = table.find(block.name.substr(6));
        EXPECT_EQ(block.sizes, parameter.sizes);
        const std::vector<std::int64_t> sizes(block.view.sizes().begin(), block.view.sizes().end());
        const auto inside = positions(block.sizes, block.start, sizes);
        const std::vector<double> values = test::read(block.view, stream);
        ASSERT_EQ(values.size(), inside.size());
        for (std::size_t i = 0; i < inside.size(); ++i) {
          const std::int64_t place = parameter.range.begin + inside[i];
          ASSERT_EQ(values[i], static_cast<double>(place)) << block.name;
          ++found[static_cast<std::size_t>(place)];
        }
      }
      EXPECT_EQ(found, expected);
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel

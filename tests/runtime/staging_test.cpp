// What a group of messages marked all_gather must be, for a backend to gather natively.
#include "runtime/comm/staging.h"

#include <gtest/gtest.h>

#include <vector>

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;
using Parts = std::vector<std::int64_t>;

/// Ranks that send views of their own memory to all others; of some ranks, other sizes.
struct Group {
  explicit Group(int ranks) : size(ranks) {}

  /// What rank `rank` of a group is asked, where rank r sends parts of sizes(r) float32.
  template <class Sizes>
  Parts asked(int rank, const Sizes& sizes) const {
    std::vector<SendMessage> sends;
    std::vector<ReceiveMessage> receives;
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank && !to_self) continue;
      sends.push_back({peer, {}, wire});
      for (const std::int64_t rows : sizes(rank)) sends.back().parts.emplace_back(view(rows));
      receives.push_back({peer, {}, wire});
      for (const std::int64_t rows : sizes(peer)) receives.back().parts.emplace_back(view(rows));
    }
    if (drop_last) receives.pop_back();
    if (twice) sends.push_back(sends.front());
    return detail::gathered_parts(sends, receives, rank, size);
  }
  TensorView view(std::int64_t rows) const {
    return {memory->view().data(), DType::float32, Device{}, {rows}};
  }

  int size;
  bool to_self = false, drop_last = false, twice = false;
  std::optional<DType> wire = std::nullopt;
  Stream stream = Stream::cpu("memory");
  std::shared_ptr<const Tensor> memory = std::make_shared<const Tensor>(
      std::initializer_list<std::int64_t>{1000}, DType::float32, stream);
};

TEST(GatheredParts, AreThoseOfEveryRankWhereAllAgree) {
  for (const int size : {2, 3, 7}) {
    for (int rank = 0; rank < size; ++rank) {
      Group group(size);
      const auto alike = [](int) { return std::vector<std::int64_t>{7, 0, 1, 127}; };
      EXPECT_EQ(group.asked(rank, alike), (Parts{28, 4, 508}));
      group.to_self = true;
      EXPECT_EQ(group.asked(rank, alike), (Parts{28, 4, 508}));
      group.wire = DType::bfloat16;
      EXPECT_EQ(group.asked(rank, alike), (Parts{14, 2, 254}));
    }
  }
}

TEST(GatheredParts, AreNoneOnAllRanksWhereOneDiffers) {
  for (const int size : {2, 3, 7}) {
    for (int odd = 0; odd < size; ++odd) {
      for (int rank = 0; rank < size; ++rank) {
        const Group group(size);
        EXPECT_TRUE(group.asked(rank, [&](int r) { return Parts{7, r == odd ? 8 : 9}; }).empty());
        // As many bytes together, cut elsewhere.
        EXPECT_TRUE(group.asked(rank,
                                [&](int r) {
                                  return r == odd ? Parts{7, 9} : Parts{9, 7};
                                })
                        .empty());
        EXPECT_TRUE(group.asked(rank,
                                [&](int r) {
                                  return r == odd ? Parts{16} : Parts{9, 7};
                                })
                        .empty());
      }
    }
  }
}

TEST(GatheredParts, AreNoneWithoutOneMessageToAndFromEveryRank) {
  Group group(3);
  const auto alike = [](int) { return Parts{5}; };
  group.drop_last = true;
  EXPECT_TRUE(group.asked(1, alike).empty());
  group.drop_last = false;
  group.twice = true;
  EXPECT_TRUE(group.asked(1, alike).empty());
  EXPECT_TRUE(Group(1).asked(0, alike).empty());
  EXPECT_TRUE(Group(3).asked(0, [](int) { return Parts{0, 0}; }).empty());
}

}  // namespace
}  // namespace longhaul::test

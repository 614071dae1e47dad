// Every scheme: proven by the verifier over rank counts, masks and layouts.
#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using test::show;

struct Heads {
  int q, kv;
};

bool suits(const Expression& options, const Layout& layout, const HeadMasks& masks,
           const Heads& heads) {
  return !refuse({options, layout.ranks(), heads.q, heads.kv, layout.kind(), is_causal(masks),
                  Family::softmax, sees_whole_past(masks)});
}

void expect_verifies(const Expression& options, const HeadMasks& masks, const Layout& layout,
                     const Heads& heads, const std::string& what) {
  if (!suits(options, layout, masks, heads)) return;
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    const SchemeInputs inputs{masks,     layout, {heads.q, heads.kv, 8, 8, runtime::DType::float32},
                              direction, {},     options};
    const Verdict verdict = verify(build_schedule(inputs), masks, layout);
    ASSERT_TRUE(verdict.ok()) << show(options) << " over " << name(layout.kind())
                              << " P=" << layout.ranks() << " n=" << masks.tokens() << " heads "
                              << heads.q << "/" << heads.kv << " " << what << " " << name(direction)
                              << ": " << name(verdict.fault) << ": " << verdict.message;
  }
}

/// assorted_masks(n) without those that say the same, as most do at n = 1.
std::vector<test::NamedMask> different_masks(std::int64_t n) {
  std::vector<test::NamedMask> different;
  for (const test::NamedMask& one : test::assorted_masks(n)) {
    const auto same = [&](const test::NamedMask& other) { return other.mask == one.mask; };
    if (std::ranges::none_of(different, same)) different.push_back(one);
  }
  return different;
}

class Verified : public testing::TestWithParam<int> {};

TEST_P(Verified, ForEveryMaskLayoutAndHeads) {
  const int ranks = GetParam();
  for (const Heads heads :
       {Heads{ranks * 2, ranks * 2}, Heads{ranks * 4, ranks}, Heads{ranks * 2, 1}, Heads{3, 1}}) {
    for (const Expression& options : test::all_schemes(ranks, heads.q, heads.kv)) {
      for (const std::int64_t n : {1, 5, 37}) {
        for (const auto& [mask_name, mask] : different_masks(n)) {
          for (const Layout& layout : test::all_layouts(mask, 1, ranks))
            expect_verifies(options, mask, layout, heads, mask_name);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, Verified, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 12),
                         [](const auto& info) { return "P" + std::to_string(info.param); });

TEST(Schemes, VerifyForMasksThatDifferByHead) {
  const std::int64_t n = 41;
  const auto masks = test::assorted_masks(n);
  for (const int ranks : {1, 2, 3, 4, 6}) {
    for (const Heads heads : {Heads{12, 12}, Heads{12, 3}, Heads{12, 1}}) {
      std::vector<Mask> by_head;  // groups that cross the borders of key/value heads
      for (int head = 0; head < heads.q; ++head)
        by_head.push_back(masks[static_cast<std::size_t>(head * 2 / 3) % masks.size()].mask);
      const HeadMasks all = HeadMasks::per_head(by_head);
      for (const Expression& options : test::all_schemes(ranks, heads.q, heads.kv)) {
        for (const Layout& layout : test::all_layouts(all, 1, ranks))
          expect_verifies(options, all, layout, heads, "by head");
      }
    }
  }
}

TEST(Schemes, ExpressionsInsideExpressionsVerify) {
  const HeadMasks mask = Mask::causal(70);
  for (const auto& [text, ranks] :
       {std::pair("usp(heads=2, around=double_ring(outer=2, inner=2, backward=burst))", 8),
        std::pair("usp(heads=2, around=double_ring(outer=1, backward=ring))", 8),
        std::pair("usp(nesting=ring_inside, around=double_ring(inner=3))", 12),
        std::pair("usp(heads=3, nesting=ring_inside, around=double_ring(outer=5))", 15)}) {
    const Expression scheme = parse_scheme(text);
    for (const Layout& layout : test::all_layouts(mask, 1, ranks)) {
      EXPECT_TRUE(suits(scheme, layout, mask, {12, 12})) << text;
      expect_verifies(scheme, mask, layout, {12, 12}, "causal");
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel

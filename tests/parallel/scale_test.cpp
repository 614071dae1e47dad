// Schedules and their verifier at 512 ranks and 4,096 documents, for every scheme and layout, in
// seconds on one core.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>

#include "parallel/verifier.h"
#include "runtime/error.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;

/// `count` documents of random lengths over n tokens.
Mask documents(std::int64_t n, int count) {
  std::mt19937 random(3);
  std::vector<std::int64_t> offsets{0, n};
  for (int i = 1; i < count; ++i)
    offsets.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n + 1)));
  std::ranges::sort(offsets);
  return Mask::documents(offsets);
}

struct ScaleCase {
  std::string scheme;
  LayoutKind layout;
};

/// Every legal pair.
std::vector<ScaleCase> all_cases() {
  std::vector<ScaleCase> cases;
  for (const std::string& scheme : scheme_names()) {
    for (const LayoutKind layout : layout_kinds()) {
      if (scheme != "balanced_ring" || layout == LayoutKind::contiguous)
        cases.push_back({scheme, layout});
    }
  }
  return cases;
}

class Scale : public testing::TestWithParam<ScaleCase> {};

TEST_P(Scale, VerifiesAt512RanksWith4096Documents) {
  constexpr int kRanks = 512;
  const std::int64_t n = kRanks * 20 + 5;
  const Mask mask = documents(n, 4096);
  SchemeOptions options;
  options.name = GetParam().scheme;
  // Ulysses shares heads among all ranks; usp finds its degrees among fewer.
  const bool by_heads = options.name == "ulysses";
  // Two key/value heads: all_gather attends one while the other is on its way.
  const Shapes shapes{by_heads ? kRanks : 16, by_heads ? kRanks : 2, 8, 8, runtime::DType::float32};
  double total = 0;
  const Layout layout = Layout::make(GetParam().layout, mask, 1, kRanks);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    SchemeInputs inputs{mask, layout, shapes, direction};
    inputs.options = options;
    const auto begin = std::clock();
    const Schedule schedule = build_schedule(inputs);
    const auto built = std::clock();
    const Verdict verdict = verify(schedule, mask, layout);
    const auto verified = std::clock();
    EXPECT_TRUE(verdict.ok()) << verdict.message;
    std::size_t steps = 0;
    for (const Program& program : schedule.programs) steps += program.steps.size();
    // Of this process, which does nothing else: a busy machine does not count.
    const auto seconds = [](std::clock_t a, std::clock_t b) {
      return static_cast<double>(b - a) / CLOCKS_PER_SEC;
    };
    std::printf("P=512 %s %s %s: %zu steps, built in %.2f s, verified in %.2f s\n",
                options.name.c_str(), name(layout.kind()), name(direction), steps,
                seconds(begin, built), seconds(built, verified));
    total += seconds(begin, verified);
  }
  EXPECT_LT(total, 60.0);  // seconds of one core; several times what it takes
}

INSTANTIATE_TEST_SUITE_P(Schemes, Scale, testing::ValuesIn(all_cases()), [](const auto& info) {
  return info.param.scheme + "_" + name(info.param.layout);
});

}  // namespace
}  // namespace longhaul::parallel

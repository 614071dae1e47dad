// Schedules and their verifier at 512 ranks and 4,096 documents, for every scheme and layout, in
// seconds on one core.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <ostream>
#include <random>

#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;

/// `count` documents over n tokens, the first `long_one` tokens long, the others of random lengths.
Mask documents(std::int64_t n, int count, std::int64_t long_one) {
  std::mt19937 random(3);
  std::vector<std::int64_t> offsets{0, long_one, n};
  while (static_cast<int>(offsets.size()) <= count) {
    const auto others = static_cast<std::uint64_t>(n - long_one + 1);
    offsets.push_back(long_one + static_cast<std::int64_t>(random() % others));
  }
  std::ranges::sort(offsets);
  return Mask::documents(offsets);
}

struct ScaleCase {
  std::string scheme;
  LayoutKind layout;
  bool one_long = false;  ///< a document of half of the tokens among the short ones
};
void PrintTo(const ScaleCase& scale, std::ostream* out) {
  *out << scale.scheme << (scale.one_long ? ", one long" : "");
}

/// Every scheme: over contiguous ranks with one long document, whose blocks travel far; and over
/// every layout with short ones. What all_gather and ulysses send depends on neither, and their
/// programs are the largest: two layouts.
std::vector<ScaleCase> all_cases() {
  std::vector<ScaleCase> cases;
  for (const std::string& scheme : scheme_names()) {
    cases.push_back({scheme, LayoutKind::contiguous, true});
    if (scheme == "balanced_ring") continue;
    const bool sends_all = scheme == "all_gather" || scheme == "ulysses";
    for (const LayoutKind layout : layout_kinds()) {
      if (scheme == "disaggregated" && layout == LayoutKind::striped) continue;
      if (!sends_all || layout == LayoutKind::zigzag || layout == LayoutKind::striped)
        cases.push_back({scheme, layout});
    }
  }
  return cases;
}

class Scale : public testing::TestWithParam<ScaleCase> {};

TEST_P(Scale, VerifiesAt512RanksWith4096Documents) {
  constexpr int kRanks = 512;
  const std::int64_t n = kRanks * 20 + 5;
  const Mask mask = documents(n, 4096, GetParam().one_long ? n / 2 : 0);
  const Expression options(GetParam().scheme);
  // Ulysses shares heads among all ranks; usp finds its degrees among fewer.
  const bool by_heads = options.name == "ulysses";
  // Two key/value heads: all_gather attends one while the other is on its way.
  const Shapes shapes{by_heads ? kRanks : 16, by_heads ? kRanks : 2, 8, 8, runtime::DType::float32};
  double total = 0;
  const Layout layout = Layout::make(GetParam().layout, mask, 1, kRanks);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    SchemeInputs inputs{mask, layout, shapes, direction};
    inputs.scheme = options;
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
    std::printf("P=512 %s%s %s %s: %zu steps, built in %.2f s, verified in %.2f s\n",
                options.name.c_str(), GetParam().one_long ? " one long document" : "",
                name(layout.kind()), name(direction), steps, seconds(begin, built),
                seconds(built, verified));
    total += seconds(begin, verified);
  }
  EXPECT_LT(total, 60.0);  // seconds of one core; several times what it takes
}

INSTANTIATE_TEST_SUITE_P(Schemes, Scale, testing::ValuesIn(all_cases()), [](const auto& info) {
  return info.param.scheme + "_" + name(info.param.layout) +
         (info.param.one_long ? "_one_long_document" : "");
});

}  // namespace
}  // namespace longhaul::parallel

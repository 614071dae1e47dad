#include "tests/support/scheme_cases.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::test {

using attention::kUnbounded;
using attention::Mask;
using parallel::BackwardRing;
using parallel::Nesting;
using parallel::SchemeOption;
using parallel::SchemeOptions;

std::string show(const SchemeOptions& options) {
  std::string text = options.name;
  if (options.outer > 0)
    text += runtime::concat(" outer=", options.outer, ",inner=", options.inner);
  if (options.name == "usp") {
    text += options.nesting == Nesting::heads_inside ? " heads_inside" : " ring_inside";
    text += " around " + options.around;
  }
  if (options.backward == BackwardRing::ring) text += " backward ring";
  if (options.backward == BackwardRing::burst) text += " backward burst";
  return text;
}

std::vector<SchemeOptions> all_schemes(int ranks, int heads, int kv_heads) {
  std::vector<SchemeOptions> all;
  const auto add = [&](const SchemeOptions& options) {
    // Layout and mask are the caller's to suit to the scheme.
    if (!parallel::refuse({options, ranks, heads, kv_heads})) all.push_back(options);
  };
  for (const std::string& name : parallel::scheme_names()) {
    // What the scheme itself reads is varied, what one inside it reads is not.
    const auto& read = parallel::scheme_from_name(name).reads;
    const auto varied = [&](SchemeOption option) {
      return std::ranges::find(read, option) != read.end();
    };
    std::vector<SchemeOptions> some(1);
    some[0].name = name;
    const auto vary = [&](bool applies, auto values, auto set) {
      if (!applies) return;
      std::vector<SchemeOptions> more;
      for (const SchemeOptions& options : some) {
        for (const auto& value : values) {
          more.push_back(options);
          set(more.back(), value);
        }
      }
      some = more;
    };
    std::vector<int> divisors;
    for (int inner = 1; inner <= ranks; ++inner) {
      if (ranks % inner == 0) divisors.push_back(inner);
    }
    vary(varied(SchemeOption::degrees), divisors, [&](SchemeOptions& options, int inner) {
      options.outer = ranks / inner;
      options.inner = inner;
    });
    vary(varied(SchemeOption::nesting), std::vector{Nesting::heads_inside, Nesting::ring_inside},
         [](SchemeOptions& options, Nesting nesting) { options.nesting = nesting; });
    vary(varied(SchemeOption::around), std::vector{"ring", "burst", "double_ring"},
         [](SchemeOptions& options, const char* around) { options.around = around; });
    vary(varied(SchemeOption::backward), std::vector{BackwardRing::ring, BackwardRing::burst},
         [](SchemeOptions& options, BackwardRing backward) { options.backward = backward; });
    for (const SchemeOptions& options : some) add(options);
  }
  return all;
}

std::vector<NamedMask> assorted_masks(std::int64_t n) {
  const auto at = [&](std::int64_t tenths) { return n * tenths / 10; };
  std::vector<NamedMask> all{{"full", Mask::full(n)}, {"causal", Mask::causal(n)}};
  const std::vector<std::int64_t> offsets{0, at(1), at(1), at(1) + (n > 9 ? 1 : 0), at(6), n};
  all.push_back({"documents", Mask::documents(offsets)});
  std::vector<std::int64_t> singles;
  for (std::int64_t i = 0; i <= n; ++i) singles.push_back(i);
  all.push_back({"documents of one token", Mask::documents(singles)});
  const std::int64_t width = std::max<std::int64_t>(1, n / 9);
  all.push_back({"causal window", Mask::from_slices(n, {{0, n, 0, n, 1 - width, 0}})});
  all.push_back({"full window", Mask::from_slices(n, {{0, n, 0, n, 1 - width, width - 1}})});
  const std::int64_t prefix = at(3);  // seen by all, and the rest causal
  all.push_back({"prefix", Mask::from_slices(
                               n, {{0, n, 0, prefix}, {prefix, n, prefix, n, -kUnbounded, 0}})});
  all.push_back({"blocks", Mask::from_slices(n, {{0, at(4), at(2), at(5)},
                                                 {at(4), at(8), 0, at(1)},
                                                 {at(4), at(8), at(7), n}})});
  if (n >= 20) {  // slices of every type; some rows and keys see nothing
    all.push_back({"assorted", Mask::from_slices(n, {{0, at(2), 0, at(2), -kUnbounded, 0},
                                                     {0, at(2), at(5), n, 0, kUnbounded},
                                                     {at(2) + 1, at(5), 2, at(5), -7, 2},
                                                     {at(5) + 1, n, 0, 1},
                                                     {at(5) + 1, n, at(5), n, -kUnbounded, -1}})});
  }
  return all;
}

attention::HeadMasks masks_by_head(std::int64_t n, int heads) {
  const std::vector<NamedMask> all = assorted_masks(n);
  std::vector<Mask> masks;
  for (int head = 0; head < heads; ++head)
    masks.push_back(all[static_cast<std::size_t>(head * 2 / 3) % all.size()].mask);
  return attention::HeadMasks::per_head(masks);
}

std::vector<parallel::Layout> all_layouts(const attention::HeadMasks& masks, std::int64_t batch,
                                          int ranks) {
  std::vector<parallel::Layout> all;
  for (const parallel::LayoutKind kind : parallel::layout_kinds())
    all.push_back(parallel::Layout::make(kind, masks, batch, ranks));
  return all;
}

}  // namespace longhaul::test

#include "tests/support/scheme_cases.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::test {

using attention::kUnbounded;
using attention::Mask;
using parallel::Argument;
using parallel::ArgumentType;
using parallel::Expression;

std::string show(const Expression& scheme) { return scheme.text(); }

namespace {

/// Values to try of an argument; a policy, `auto`, is none of its own.
std::vector<Expression::Value> values_of(const Argument& argument, int ranks) {
  std::vector<Expression::Value> values;
  switch (argument.type) {
    case ArgumentType::integer:
      for (std::int64_t divisor = 1; divisor <= ranks; ++divisor) {
        if (ranks % divisor == 0) values.push_back(divisor);
      }
      return values;
    case ArgumentType::decimal:
      return {argument.minimum};
    case ArgumentType::boolean:
      return {true, false};
    case ArgumentType::word:
      for (const std::string& choice : argument.choices) {
        if (choice != "auto") values.push_back(Expression(choice));
      }
      return values;
    case ArgumentType::ring:
      for (const std::string& name : parallel::scheme_names()) {
        if (parallel::scheme_from_name(name).ring) values.push_back(Expression(name));
      }
      return values;
  }
  return values;
}

}  // namespace

std::vector<Expression> all_schemes(int ranks, int heads, int kv_heads) {
  std::vector<Expression> all;
  for (const std::string& name : parallel::scheme_names()) {
    std::vector<Expression> some{name};
    for (const Argument& argument : parallel::scheme_from_name(name).arguments) {
      std::vector<Expression> more;
      for (const Expression& scheme : some) {
        for (const Expression::Value& value : values_of(argument, ranks))
          more.push_back(scheme.with(argument.name, value));
      }
      some = more;
    }
    for (const Expression& scheme : some) {
      // Layout and mask are the caller's to suit to the scheme.
      if (!parallel::refuse({scheme, ranks, heads, kv_heads}))
        all.push_back(parallel::canonical(scheme));
    }
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

#include "tests/support/linear_cases.h"

#include <algorithm>

namespace longhaul::test {

using attention::Mask;

std::vector<parallel::Expression> linear_schemes(int key_heads) {
  std::vector<parallel::Expression> all;
  for (const std::string& name : parallel::scheme_names(parallel::Family::linear))
    all.emplace_back(name);
  for (const char* text : {"lasp(replay=true)", "lasp(replay=true, groups=1)", "all_scan(blocks=1)",
                           "all_scan(blocks=3)", "all_scan(blocks=64)"})
    all.push_back(parallel::parse_scheme(text, {}, parallel::Family::linear));
  if (key_heads > 1)
    all.push_back(parallel::parse_scheme("lasp(groups=2)", {}, parallel::Family::linear));
  return all;
}

std::vector<NamedMask> document_masks(std::int64_t n, std::int64_t batch) {
  const auto documents = [&](const std::string& name, std::vector<std::int64_t> offsets) {
    return NamedMask{name, Mask::documents(offsets).repeated(batch)};
  };
  std::vector<NamedMask> all{{"causal", Mask::causal(n).repeated(batch)}};
  const std::int64_t third = n / 3, half = n / 2;
  all.push_back(documents("thirds", {0, third, third, half, n}));
  std::vector<std::int64_t> singles, sevens{0};
  for (std::int64_t i = 0; i <= n; ++i) singles.push_back(i);
  all.push_back(documents("singles", singles));
  for (std::int64_t i = 7; i < n; i += 7) sevens.push_back(i);
  sevens.push_back(n);
  all.push_back(documents("sevens", sevens));
  if (n > 2) all.push_back(documents("first and last alone", {0, 1, n - 1, n}));
  return all;
}

std::vector<parallel::Layout> run_layouts(const attention::HeadMasks& masks, std::int64_t batch,
                                          int ranks) {
  std::vector<parallel::Layout> all;
  for (const parallel::LayoutKind kind : parallel::layout_kinds()) {
    if (kind != parallel::LayoutKind::striped)
      all.push_back(parallel::Layout::make(kind, masks, batch, ranks));
  }
  return all;
}

parallel::Shapes linear_shapes(const std::string& kind, int heads, int key_heads, std::int64_t dim,
                               std::int64_t value_dim) {
  parallel::Shapes shapes{heads, key_heads, dim, value_dim};
  shapes.linear = parallel::LinearCall{.recurrence = attention::recurrence_of_kind(kind)};
  return shapes;
}

}  // namespace longhaul::test

#include "tests/support/halo_cases.h"

#include <algorithm>

#include "tests/support/scheme_cases.h"

namespace longhaul::test {

using namespace parallel;

std::vector<Layout> consecutive_layouts(const std::vector<std::int64_t>& documents, int ranks) {
  std::vector<Layout> some;
  for (Layout& layout : all_layouts(attention::Mask::documents(documents), 1, ranks)) {
    bool consecutive = true;
    for (int rank = 0; rank < ranks; ++rank)
      consecutive &=
          std::ranges::all_of(layout.runs(rank), [](const Run& r) { return r.stride == 1; });
    if (consecutive) some.push_back(std::move(layout));
  }
  return some;
}

HaloInputs halo_inputs(const Layout& layout, const std::vector<std::int64_t>& documents,
                       std::int64_t conv_width, Direction direction, std::int64_t channels,
                       runtime::DType activation) {
  return {layout, documents, conv_width, channels, activation, direction};
}

}  // namespace longhaul::test

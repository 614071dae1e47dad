#include "models/weights.h"

#include "runtime/error.h"

namespace longhaul::models {

void Weights::check(const std::string& name) const {
  const int group = store_.table().find(name).group;
  LONGHAUL_CHECK(group == group_, "parameter '", name, "' is of group ", group, "; group ", group_,
                 " was fetched");
}

Weight Weights::value(const std::string& name) const {
  check(name);
  return {store_.value(name), store_.gradient(name)};
}

Weight Weights::working(const std::string& name) const {
  check(name);
  return {store_.working(name), store_.gradient(name)};
}

Weight Weights::working(const std::string& first, const std::string& last) const {
  check(first);
  check(last);
  const parallel::ParameterTable& table = store_.table();
  const parallel::ElementRange range{table.find(first).range.begin, table.find(last).range.end};
  const std::int64_t columns = table.find(first).sizes.back();
  LONGHAUL_CHECK(range.elements() > 0, "parameter '", last, "' does not follow '", first, "'");
  for (const parallel::Parameter& parameter : table.parameters()) {
    if (common(parameter.range, range).elements() == 0) continue;
    LONGHAUL_CHECK(parameter.sizes.size() == 2 && parameter.sizes[1] == columns, "parameter '",
                   parameter.name, "', among '", first, "' to '", last, "', has no rows of ",
                   columns);
  }
  const auto matrix = [&](const auto& flat) {
    return flat.slice(0, range.begin, range.end).reshape({range.elements() / columns, columns});
  };
  return {matrix(store_.working()), matrix(store_.gradients())};
}

}  // namespace longhaul::models

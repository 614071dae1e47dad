#include "parallel/parameters.h"

#include <algorithm>
#include <utility>

#include "runtime/error.h"

namespace longhaul::parallel {

void ParameterTable::add(Parameter parameter) {
  LONGHAUL_CHECK(parameters_.empty() ? parameter.group == 0
                                     : parameter.group == parameters_.back().group ||
                                           parameter.group == parameters_.back().group + 1,
                 "parameter '", parameter.name, "' is of group ", parameter.group,
                 ", out of order");
  LONGHAUL_CHECK(index_.emplace(parameter.name, parameters_.size()).second, "parameter '",
                 parameter.name, "' is listed twice");
  std::int64_t elements = 1;
  for (const std::int64_t size : parameter.sizes) elements *= size;
  parameter.range = {elements_, elements_ + elements};
  elements_ += elements;
  parameters_.push_back(std::move(parameter));
}

ElementRange ParameterTable::group_range(int group) const {
  ElementRange range{elements_, 0};
  for (const Parameter& parameter : parameters_) {
    if (parameter.group != group) continue;
    range.begin = std::min(range.begin, parameter.range.begin);
    range.end = std::max(range.end, parameter.range.end);
  }
  LONGHAUL_CHECK(range.begin <= range.end, "there is no parameter group ", group);
  return range;
}

const Parameter& ParameterTable::find(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    runtime::fail(runtime::ExitCode::data, "the model has no parameter '", name, "'");
  return parameters_[found->second];
}

}  // namespace longhaul::parallel

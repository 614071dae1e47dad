#include "models/weights.h"

#include "runtime/error.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

TensorView Weight::gradient() const {
  const TensorView flat = store_.gradients().slice(0, range_.begin, range_.end);
  return {flat.data(), flat.dtype(), flat.device(), value.sizes()};
}

void Weight::add_product(ConstTensorView a, ConstTensorView b, const Stream& stream) const {
  runtime::ops::matmul(a, b, gradient(), store_.next_write(range_, stream), stream);
}

TensorView Weight::gradient(const Stream& stream) const {
  store_.zero_unwritten(range_, stream);
  return gradient();
}

parallel::ElementRange Weights::range_of(const std::string& name) const {
  const parallel::Parameter& parameter = store_.table().find(name);
  LONGHAUL_CHECK(parameter.group == group_, "parameter '", name, "' is of group ", parameter.group,
                 "; group ", group_, " was fetched");
  return parameter.range;
}

Weight Weights::value(const std::string& name) const {
  return {store_.value(name), store_, range_of(name)};
}

Weight Weights::working(const std::string& name) const {
  return {store_.working(name), store_, range_of(name)};
}

Weight Weights::value(const std::string& first, const std::string& last) const {
  return matrix(store_.values(), first, last);
}

Weight Weights::working(const std::string& first, const std::string& last) const {
  return matrix(store_.working(), first, last);
}

Weight Weights::vector(const std::string& first, const std::string& last) const {
  const parallel::ElementRange range{range_of(first).begin, range_of(last).end};
  LONGHAUL_CHECK(range.elements() > 0, "parameter '", last, "' does not follow '", first, "'");
  for (const parallel::Parameter& parameter : store_.table().parameters()) {
    if (common(parameter.range, range).elements() == 0) continue;
    LONGHAUL_CHECK(parameter.sizes.size() == 1, "parameter '", parameter.name, "', among '", first,
                   "' to '", last, "', has ", parameter.sizes.size(), " dims");
  }
  return {store_.values().slice(0, range.begin, range.end), store_, range};
}

Weight Weights::matrix(ConstTensorView values, const std::string& first,
                       const std::string& last) const {
  const parallel::ParameterTable& table = store_.table();
  const parallel::ElementRange range{range_of(first).begin, range_of(last).end};
  const auto columns_of = [](const parallel::Parameter& parameter) {
    return parameter.range.elements() / parameter.sizes.front();
  };
  const std::int64_t columns = columns_of(table.find(first));
  LONGHAUL_CHECK(range.elements() > 0, "parameter '", last, "' does not follow '", first, "'");
  for (const parallel::Parameter& parameter : table.parameters()) {
    if (common(parameter.range, range).elements() == 0) continue;
    LONGHAUL_CHECK(parameter.sizes.size() >= 2 && columns_of(parameter) == columns, "parameter '",
                   parameter.name, "', among '", first, "' to '", last, "', has no rows of ",
                   columns);
  }
  return {values.slice(0, range.begin, range.end).reshape({range.elements() / columns, columns}),
          store_, range};
}

}  // namespace longhaul::models

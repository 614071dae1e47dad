#include "models/weights.h"

#include "runtime/error.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::Write;

void Weight::add_product(ConstTensorView a, ConstTensorView b, const Stream& stream) const {
  runtime::ops::matmul(a, b, store_.gradient(name_), store_.next_write(name_), stream);
}

TensorView Weight::gradient(const Stream& stream) const {
  const TensorView gradient = store_.gradient(name_);
  if (store_.next_write(name_) == Write::overwrite) fill(gradient, 0, stream);
  return gradient;
}

const std::string& Weights::checked(const std::string& name) const {
  const parallel::Parameter& parameter = store_.table().find(name);
  LONGHAUL_CHECK(parameter.group == group_, "parameter '", name, "' is of group ", parameter.group,
                 "; group ", group_, " was fetched");
  return parameter.name;
}

Weight Weights::value(const std::string& name) const {
  return {store_.value(name), store_, checked(name)};
}

Weight Weights::working(const std::string& name) const {
  return {store_.working(name), store_, checked(name)};
}

}  // namespace longhaul::models

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

}  // namespace longhaul::models

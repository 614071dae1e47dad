#include "parallel/parameters.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::Error;

TEST(ParameterTable, RefusesRepeatedNamesAndGroupsOutOfOrder) {
  ParameterTable table;
  table.add({"a", {2}, Initialisation::ones, 0, false, -1, 0, {}});
  EXPECT_THROW(table.add({"a", {2}, Initialisation::ones, 0, false, -1, 0, {}}), Error);
  EXPECT_THROW(table.add({"b", {2}, Initialisation::ones, 0, false, -1, 2, {}}), Error);
}

}  // namespace
}  // namespace longhaul::parallel

#include "runtime/build_info.h"

#include <gtest/gtest.h>

namespace longhaul::runtime {
namespace {

TEST(BuildInfo, NamesTheBuild) {
  EXPECT_EQ(build_digest().size(), 16u);
  EXPECT_EQ(build_digest(), build_digest());
  EXPECT_FALSE(build_info().version.empty());
  EXPECT_NE(version_line().find(build_info().version), std::string::npos);
  EXPECT_NE(version_line().find(build_digest()), std::string::npos);
}

}  // namespace
}  // namespace longhaul::runtime

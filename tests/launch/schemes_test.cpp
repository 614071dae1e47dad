// The configuration offers exactly the schemes and layouts that exist.
#include <gtest/gtest.h>

#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"
#include "runtime/config/schema.h"

namespace longhaul::launch {
namespace {

TEST(Schemes, TheConfigurationOffersThoseThatExist) {
  const runtime::ConfigKey* key =
      runtime::find_config_key("parallelism", "context_parallel_scheme");
  ASSERT_NE(key, nullptr);
  EXPECT_EQ(key->choices, parallel::scheme_names());
}

TEST(Schemes, TheConfigurationOffersLayoutsThatExist) {
  const runtime::ConfigKey* key =
      runtime::find_config_key("parallelism", "context_parallel_layout");
  ASSERT_NE(key, nullptr);
  std::vector<std::string> layouts;
  for (const parallel::LayoutKind kind : parallel::layout_kinds())
    layouts.push_back(parallel::name(kind));
  EXPECT_EQ(key->choices, layouts);
}

}  // namespace
}  // namespace longhaul::launch

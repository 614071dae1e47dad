// The README's table of configuration keys is the schema's.
#include <gtest/gtest.h>

#include "launch/train_config.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

TEST(Readme, ExplainsEveryConfigurationKeyAsTheSchemaDoes) {
  const std::string readme = test::read_text(std::string(LONGHAUL_SOURCE_DIR) + "/README.md");
  EXPECT_NE(readme.find(config_reference()), std::string::npos)
      << "README.md differs from `longhaul validate --keys`; paste its output";
}

}  // namespace
}  // namespace longhaul::launch

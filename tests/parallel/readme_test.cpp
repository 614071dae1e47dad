// What parallel/README.md says of the sizes of schemes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <regex>

#include "tests/support/temp_directory.h"

namespace longhaul::parallel {
namespace {

namespace fs = std::filesystem;

TEST(Readme, TheSmallestSchemeIsOneFileOfThatManyLines) {
  const fs::path room = fs::path(LONGHAUL_SOURCE_DIR) / "parallel";
  std::string smallest;
  std::ptrdiff_t least = 0;
  int schemes = 0;
  for (const auto& entry : fs::directory_iterator(room / "schemes")) {
    const std::string text = test::read_text(entry.path());
    if (entry.path().extension() != ".cpp" || text.find("_scheme{") == std::string::npos) continue;
    ++schemes;
    const std::ptrdiff_t lines = std::ranges::count(text, '\n');
    if (smallest.empty() || lines < least) {
      smallest = entry.path().filename().string();
      least = lines;
    }
  }
  EXPECT_GE(schemes, 6);
  const std::string readme =
      std::regex_replace(test::read_text(room / "README.md"), std::regex("\\s+"), " ");
  EXPECT_NE(readme.find("`schemes/" + smallest + "` is the smallest, at " + std::to_string(least) +
                        " lines"),
            std::string::npos)
      << smallest << " has " << least << " lines";
}

}  // namespace
}  // namespace longhaul::parallel

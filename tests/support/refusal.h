#pragma once
// A folder in which the program is given wrong input and must refuse it, writing nothing.

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace longhaul::test {

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Every path below a folder, with sizes and times of change.
std::set<std::string> listing(const std::filesystem::path& folder);

class RefusalTest : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.file(name); }
  /// The program, in the folder, outside of any launcher.
  ProcessResult longhaul(const std::vector<std::string>& arguments,
                         const std::map<std::string, std::string>& environment = {}) const;
  ProcessResult mpirun(int ranks, const std::vector<std::string>& arguments) const;
  /// The run fails soon with this code, says all parts on stderr, and changes nothing in the
  /// folder.
  void expect_refused(int code, const std::vector<std::string>& parts,
                      const std::vector<std::string>& arguments,
                      const std::map<std::string, std::string>& environment = {}) const;

  TempDirectory folder_;
};

}  // namespace longhaul::test

#pragma once
// `longhaul serve` as a process, for tests.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace longhaul::test {

class AttentionServer {
 public:
  /// Started, and listening: throws std::runtime_error with what it said where it is not, within
  /// some seconds.
  AttentionServer(const std::string& listen, const std::string& token_file,
                  const std::vector<std::string>& options = {});

  /// With the port that was chosen.
  const std::string& address() const { return address_; }
  /// What its clients must be equal in.
  const std::string& build() const { return build_; }
  Process& process() { return *process_; }
  const Process& process() const { return *process_; }

 private:
  std::unique_ptr<Process> process_;
  std::string address_, build_;
};

}  // namespace longhaul::test

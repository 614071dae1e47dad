#pragma once
// An attention server on a thread of the test.

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/disaggregation/external_servers.h"
#include "parallel/disaggregation/task_server.h"
#include "tests/support/temp_directory.h"

namespace longhaul::test {

/// Writes a token file of mode 0600 and returns its path.
std::string write_token(const TempDirectory& folder, const std::string& name = "token",
                        const std::string& text = "0123456789abcdef");

class ServedTasks {
 public:
  using Change = std::function<void(parallel::TaskServerOptions&)>;
  ServedTasks(
      const std::string& address, const std::string& token_file,
      const Change& change = [](parallel::TaskServerOptions&) {});
  /// Stops it, as a signal would.
  ~ServedTasks();
  std::string address() const { return server_->address().text(); }
  /// The lines that it has said.
  std::string said() const;

 private:
  mutable std::mutex mutex_;
  std::string said_;
  std::atomic<bool> stop_ = false;
  std::unique_ptr<parallel::TaskServer> server_;
  std::thread thread_;
};

}  // namespace longhaul::test

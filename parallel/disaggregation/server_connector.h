#pragma once
// Making connections to external servers, at the start and again when one was lost.

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/disaggregation/external_servers.h"
#include "runtime/net/hello.h"

namespace longhaul::parallel {

/// Servers are named by their numbers. For one thread, but for a thread of its own.
class ServerConnector {
 public:
  /// As connect_servers() throws for what it is given.
  explicit ServerConnector(const ExternalServersOptions& options);
  /// May take kTrySeconds.
  ~ServerConnector();
  ServerConnector(const ServerConnector&) = delete;
  ServerConnector& operator=(const ServerConnector&) = delete;

  int servers() const { return static_cast<int>(addresses_.size()); }
  std::string address(int server) const;
  /// Tries until there is one, or until the deadline. Throws as connect_servers().
  runtime::net::Socket connect(int server, runtime::Deadline deadline) const;

  /// From now on a server is tried every kPeriodSeconds.
  void lost(int server);
  /// A connection to a server that was lost, if there is one by now.
  std::optional<runtime::net::Socket> returned(int server);
  /// Tries it once more, now, for a moment.
  std::optional<runtime::net::Socket> try_now(int server);
  /// What the last try came to; empty: there was none.
  std::string last_failure(int server) const;

 private:
  static constexpr double kPeriodSeconds = 2, kTrySeconds = 1;
  struct Lost {
    bool wanted = false;
    std::optional<runtime::net::Socket> socket;
    std::string failure;
  };
  runtime::net::Socket try_once(int server, runtime::Deadline deadline) const;
  void try_for_ever();

  const runtime::net::Token token_;
  const std::string build_, name_;
  std::vector<runtime::net::Address> addresses_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<Lost> lost_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace longhaul::parallel

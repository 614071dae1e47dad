#pragma once
// The client of attention servers that are processes of their own: what a rank has its tasks done
// by.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/disaggregation/transport.h"

namespace longhaul::parallel {

struct ExternalServersOptions {
  std::vector<std::string> addresses;  ///< "unix:PATH" or "tcp:HOST:PORT", by server
  std::string token_file;              ///< the job's secret, known to the servers as well
  /// How long a server may take for a task: counted from when it has nothing of this rank's to do
  /// before it. It includes the other ranks' tasks that the server does in between, one of each in
  /// turn. One that has nothing of this rank's to do is asked whether it is there, between calls as
  /// well, and may take as long. At the start: how long one may take to be there.
  double timeout_seconds = 60;
  /// What this rank calls itself in the servers' messages.
  std::string name = "a rank";
  /// Gets a line when a server is lost and when it is back; on the thread of a call, which also
  /// says what happened since the one before.
  std::function<void(const std::string&)> say = [](const std::string&) {};
  /// What servers must be equal in, beside the token; empty: this program's task_build().
  std::string build = {};
};

/// What a server has done for this rank so far.
struct ServerUse {
  std::string address;
  bool connected = true;
  std::int64_t tasks = 0;
  std::int64_t pairs = 0;  ///< visible (query, key) pairs of them
  double seconds = 0;      ///< that it has computed for, by its own clock
};

class ExternalServers : public TaskTransport {
 public:
  /// By server. Not from `say`.
  virtual std::vector<ServerUse> use() const = 0;
};

/// Connects to all of them. A server that is lost later is tried again every few seconds, beside
/// the calls, and gets tasks again in the call after it is back.
/// Throws Error(config) for addresses that are none, are there twice or are no addresses at all;
/// Error(launch) naming one that is not there within timeout_seconds; Error(disagree) where one has
/// another token or is another build; and as net::Token::load().
std::shared_ptr<ExternalServers> connect_servers(const ExternalServersOptions& options);

}  // namespace longhaul::parallel

#pragma once
// Stands between a client and a server, for tests: passes bytes on and counts them, and at one of
// them does something else.

#include <atomic>
#include <functional>
#include <list>
#include <string>
#include <thread>

#include "runtime/net/socket.h"

namespace longhaul::test {

struct Fault {
  enum class What {
    none,
    act,       ///< `act` is called, and what comes from either side from then on is swallowed
    truncate,  ///< both connections are closed
    flip       ///< the next byte has a bit flipped
  };
  What what = What::none;
  bool to_server = true;         ///< the direction that is counted
  std::int64_t after_bytes = 0;  ///< passed on before, of all connections together
  std::function<void()> act = [] {};
};

class FaultProxy {
 public:
  FaultProxy(const runtime::net::Address& listen, const runtime::net::Address& target,
             Fault fault = {});
  ~FaultProxy();
  FaultProxy(const FaultProxy&) = delete;
  FaultProxy& operator=(const FaultProxy&) = delete;

  std::string address() const { return listener_.address().text(); }
  /// Bytes that were passed on so far.
  std::int64_t to_server() const { return passed_[1]; }
  std::int64_t to_client() const { return passed_[0]; }
  bool fired() const { return fired_; }

 private:
  struct Pair {
    runtime::net::Socket client, server;
    bool swallow = false;
  };
  void work();
  void pass(Pair& pair, bool to_server);
  void send_all(const runtime::net::Socket& to, const std::byte* data, std::int64_t bytes,
                bool to_server);

  const runtime::net::Address target_;
  const Fault fault_;
  const runtime::net::Listener listener_;
  std::list<Pair> pairs_;
  std::atomic<std::int64_t> passed_[2] = {0, 0};
  std::atomic<bool> fired_ = false, closing_ = false;
  std::thread thread_;
};

}  // namespace longhaul::test

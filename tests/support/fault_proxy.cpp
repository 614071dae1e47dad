#include "tests/support/fault_proxy.h"

#include <poll.h>

#include <algorithm>
#include <vector>

#include "runtime/error.h"

namespace longhaul::test {
namespace {

using runtime::deadline_in;
using runtime::Error;
using runtime::net::Socket;

}  // namespace

FaultProxy::FaultProxy(const runtime::net::Address& listen, const runtime::net::Address& target,
                       Fault fault)
    : target_(target), fault_(std::move(fault)), listener_(listen), thread_([this] { work(); }) {}

FaultProxy::~FaultProxy() {
  closing_ = true;
  thread_.join();
}

void FaultProxy::work() {
  while (!closing_) {
    std::vector<pollfd> entries{{listener_.fd(), POLLIN, 0}};
    for (const Pair& pair : pairs_) {
      entries.push_back({pair.client.fd(), POLLIN, 0});
      entries.push_back({pair.server.fd(), POLLIN, 0});
    }
    ::poll(entries.data(), entries.size(), 20);
    auto entry = entries.begin() + 1;
    for (auto pair = pairs_.begin(); pair != pairs_.end(); entry += 2) {
      try {
        if (entry[0].revents != 0) pass(*pair, true);
        if (entry[1].revents != 0) pass(*pair, false);
        ++pair;
      } catch (const Error&) {  // one side is gone: so is the other
        pair = pairs_.erase(pair);
      }
    }
    if (entries[0].revents == 0) continue;
    auto client = listener_.accept();
    if (!client) continue;
    try {
      pairs_.push_back({std::move(*client), connect_to(target_, deadline_in(1)), false});
    } catch (const Error&) {
    }
  }
}

void FaultProxy::pass(Pair& pair, bool to_server) {
  const Socket &from = to_server ? pair.client : pair.server,
               &to = to_server ? pair.server : pair.client;
  std::byte data[1 << 14];
  const std::int64_t bytes = from.read(data, sizeof(data));
  if (pair.swallow) return;
  const std::int64_t until = fault_.after_bytes - passed_[to_server ? 1 : 0];
  const bool here =
      fault_.what != Fault::What::none && fault_.to_server == to_server && !fired_ && until < bytes;
  if (!here) return send_all(to, data, bytes, to_server);
  if (fault_.what == Fault::What::flip) {
    data[until] ^= std::byte{0x10};
    fired_ = true;
    return send_all(to, data, bytes, to_server);
  }
  send_all(to, data, until, to_server);
  pair.swallow = true;
  fault_.act();
  fired_ = true;
  if (fault_.what == Fault::What::truncate) runtime::fail(runtime::ExitCode::io, "cut by the test");
}

void FaultProxy::send_all(const Socket& to, const std::byte* data, std::int64_t bytes,
                          bool to_server) {
  passed_[to_server ? 1 : 0] += bytes;  // before: who has them may ask at once
  while (bytes > 0) {
    const std::int64_t sent = to.write(data, bytes);
    data += sent;
    bytes -= sent;
    if (sent == 0 && closing_) return;
    if (sent == 0) to.wait_writable(deadline_in(0.05));
  }
}

}  // namespace longhaul::test

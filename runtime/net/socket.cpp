#include "runtime/net/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "runtime/error.h"

namespace longhaul::runtime::net {
namespace {

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

[[noreturn]] void fail_closed() { fail(ExitCode::io, "the other side has closed the connection"); }

bool wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    if (::poll(&entry, 1, poll_milliseconds(deadline, 60'000)) > 0) return true;
    if (Clock::now() >= deadline) return false;
  }
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Socket::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

std::int64_t Socket::read(std::byte* to, std::int64_t bytes) const {
  const ssize_t got = ::recv(fd_, to, static_cast<std::size_t>(bytes), 0);
  if (got > 0 || bytes == 0) return got;
  if (got == 0) fail_closed();
  if (would_block(errno)) return 0;
  if (errno == ECONNRESET) fail_closed();
  fail(ExitCode::io, "reading from the connection failed: ", std::strerror(errno));
}

std::int64_t Socket::write(const std::byte* from, std::int64_t bytes) const {
  const ssize_t sent = ::send(fd_, from, static_cast<std::size_t>(bytes), MSG_NOSIGNAL);
  if (sent >= 0) return sent;
  if (would_block(errno)) return 0;
  if (errno == EPIPE || errno == ECONNRESET) fail_closed();
  fail(ExitCode::io, "writing to the connection failed: ", std::strerror(errno));
}

bool Socket::wait_readable(Deadline deadline) const { return wait_for(fd_, POLLIN, deadline); }
bool Socket::wait_writable(Deadline deadline) const { return wait_for(fd_, POLLOUT, deadline); }

int poll_milliseconds(Deadline deadline, int most) {
  const Deadline now = Clock::now();
  if (deadline <= now) return 0;
  if (deadline - now > std::chrono::milliseconds(most)) return most;
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(deadline - now).count());
}

}  // namespace longhaul::runtime::net

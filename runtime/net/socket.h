#pragma once
// Stream sockets, Unix and TCP, that never block: what waits takes a deadline.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "runtime/net/address.h"
#include "runtime/stream.h"

namespace longhaul::runtime::net {

/// Owns a descriptor. Move only.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  void close();

  /// Reads what has arrived, at most `bytes`; returns how many. 0: nothing yet. Throws Error(io)
  /// when the other side has closed, or the connection is broken.
  std::int64_t read(std::byte* to, std::int64_t bytes) const;
  /// Writes what the system takes now, and returns how many bytes. Throws Error(io).
  std::int64_t write(const std::byte* from, std::int64_t bytes) const;
  /// False past the deadline.
  bool wait_readable(Deadline deadline) const;
  bool wait_writable(Deadline deadline) const;

 private:
  int fd_ = -1;
};

/// Milliseconds for poll() until then, rounded up, at most `most`.
int poll_milliseconds(Deadline deadline, int most);

/// A connection; TCP sends at once (TCP_NODELAY) and notices hosts that are gone (keepalive).
/// Throws Error(io) with the reason where none is made before the deadline.
Socket connect_to(const Address& address, Deadline deadline);

/// Listens. A Unix socket's file has mode 0600; one that a dead server left is replaced.
class Listener {
 public:
  /// Throws Error(launch) where a server is listening already or the system refuses, Error(config)
  /// where the path is a file of another kind.
  explicit Listener(const Address& address);
  /// As close().
  ~Listener() { close(); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  /// With the port that was chosen.
  const Address& address() const { return address_; }
  /// To poll for connections.
  int fd() const { return socket_.fd(); }
  /// A connection that has come, or nothing. Throws Error(io) where the system has no descriptor
  /// left for it.
  std::optional<Socket> accept() const;
  /// Stops listening and removes the socket's file, unless it is another's by now.
  void close();

 private:
  void listen_unix();
  void listen_tcp();

  Address address_;
  Socket socket_;
  std::uint64_t device_ = 0, inode_ = 0;  // of the socket's file
};

}  // namespace longhaul::runtime::net

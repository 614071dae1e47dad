// Making connections and listening for them.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "runtime/error.h"
#include "runtime/net/socket.h"

namespace longhaul::runtime::net {
namespace {

constexpr int kBacklog = 512;
constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

Socket new_socket(int family) {
  Socket made(::socket(family, kSocketFlags, 0));
  if (!made.open()) fail(ExitCode::io, "no socket from the system: ", std::strerror(errno));
  return made;
}

void set_option(const Socket& socket, int level, int option, int value) {
  if (::setsockopt(socket.fd(), level, option, &value, sizeof(value)) != 0)
    fail(ExitCode::io, "setting socket option ", option, " failed: ", std::strerror(errno));
}

/// A host that is gone without a word is noticed after about a minute.
void set_tcp_options(const Socket& socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());  // parse_address() knows its size
  return address;
}

using Found = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;
Found look_up(const Address& address, int flags) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  const int code =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (code != 0) fail(ExitCode::io, "host '", address.host, "': ", ::gai_strerror(code));
  return {found, ::freeaddrinfo};
}

/// 0, or the error of a connection that was tried.
int try_to_connect(const Socket& socket, const sockaddr* address, socklen_t bytes,
                   Deadline deadline) {
  if (::connect(socket.fd(), address, bytes) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  if (!socket.wait_writable(deadline)) return ETIMEDOUT;
  int error = 0;
  socklen_t size = sizeof(error);
  if (::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

int try_unix(const Socket& socket, const std::string& path, Deadline deadline) {
  const sockaddr_un address = unix_address(path);
  return try_to_connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address),
                        deadline);
}

/// Held while a socket's file is looked at, removed and made: two servers that start at once do
/// not remove each other's.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path) {
    const std::filesystem::path parent = std::filesystem::path(path).parent_path();
    const std::string folder = parent.empty() ? "." : parent.string();
    folder_ = Socket(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder_.open() || ::flock(folder_.fd(), LOCK_EX) != 0)
      fail(ExitCode::launch, "unix:", path, ": folder ", folder, ": ", std::strerror(errno));
  }

 private:
  Socket folder_;
};

}  // namespace

Socket connect_to(const Address& address, Deadline deadline) {
  if (address.is_unix()) {
    Socket socket = new_socket(AF_UNIX);
    const int error = try_unix(socket, address.path, deadline);
    if (error != 0) fail(ExitCode::io, "no connection: ", std::strerror(error));
    return socket;
  }
  int error = 0;
  const Found found = look_up(address, 0);
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Socket socket = new_socket(at->ai_family);
    error = try_to_connect(socket, at->ai_addr, at->ai_addrlen, deadline);
    if (error != 0) continue;
    set_tcp_options(socket);
    return socket;
  }
  fail(ExitCode::io, "no connection: ", std::strerror(error));
}

Listener::Listener(const Address& address) : address_(address) {
  if (address.is_unix()) {
    listen_unix();
  } else {
    listen_tcp();
  }
}

void Listener::listen_unix() {
  const std::string& path = address_.path;
  const FolderLock lock(path);
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) {
      fail(ExitCode::config, address_.text(),
           ": there is a file that is no socket; remove it or give another path");
    }
    if (const int error = try_unix(new_socket(AF_UNIX), path, deadline_in(1));
        error != ECONNREFUSED) {
      fail(ExitCode::launch, address_.text(), ": a server listens there already",
           error == 0 ? "" : concat(" (", std::strerror(error), ")"),
           "; stop it or give another path");
    }
    ::unlink(path.c_str());  // of a server that is gone
  }
  socket_ = new_socket(AF_UNIX);
  const sockaddr_un bound = unix_address(path);
  // The file is made with the mode of the socket, so that it is never anybody else's to open.
  if (::fchmod(socket_.fd(), 0600) != 0 ||
      ::bind(socket_.fd(), reinterpret_cast<const sockaddr*>(&bound), sizeof(bound)) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::lstat(path.c_str(), &status) != 0 ||
      ::listen(socket_.fd(), kBacklog) != 0) {
    fail(ExitCode::launch, address_.text(), ": cannot listen: ", std::strerror(errno));
  }
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

void Listener::listen_tcp() {
  int error = 0;
  const Found found = look_up(address_, AI_PASSIVE);
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Socket socket = new_socket(at->ai_family);
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
    if (::bind(socket.fd(), at->ai_addr, at->ai_addrlen) != 0 ||
        ::listen(socket.fd(), kBacklog) != 0) {
      error = errno;
      continue;
    }
    sockaddr_storage bound{};
    socklen_t bytes = sizeof(bound);
    if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&bound), &bytes) == 0) {
      address_.port =
          ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                            : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
    }
    socket_ = std::move(socket);
    return;
  }
  fail(ExitCode::launch, address_.text(), ": cannot listen: ", std::strerror(error),
       "; give another port, or 0 for any that is free");
}

std::optional<Socket> Listener::accept() const {
  const int fd = ::accept4(socket_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    Socket socket(fd);
    if (!address_.is_unix()) set_tcp_options(socket);
    return socket;
  }
  if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
    fail(ExitCode::io, "no more connections: ", std::strerror(errno));
  return std::nullopt;  // it has gone again
}

void Listener::close() {
  if (!socket_.open()) return;
  struct stat status {};
  if (address_.is_unix() && ::lstat(address_.path.c_str(), &status) == 0 &&
      status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(address_.path.c_str());
  }
  socket_.close();
}

}  // namespace longhaul::runtime::net

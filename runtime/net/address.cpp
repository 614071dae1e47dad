#include "runtime/net/address.h"

#include <sys/un.h>

#include <charconv>

#include "runtime/error.h"

namespace longhaul::runtime::net {
namespace {

constexpr std::size_t kMostPathBytes = sizeof(sockaddr_un::sun_path) - 1;

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  fail(ExitCode::config, "address '", text, "': ", why,
       "; expected unix:PATH or tcp:HOST:PORT, such as unix:/run/user/1000/attention.sock or "
       "tcp:10.0.0.7:5000");
}

int port_of(const std::string& text, const std::string& digits) {
  int port = -1;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, port);
  if (error != std::errc() || stop != end || port < 0 || port > 65535)
    refuse(text, "'" + digits + "' is no port");
  return port;
}

}  // namespace

std::string Address::text() const {
  if (is_unix()) return "unix:" + path;
  const bool brackets = host.find(':') != std::string::npos;
  return "tcp:" + (brackets ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Address parse_address(const std::string& text) {
  Address address;
  if (text.starts_with("unix:")) {
    address.path = text.substr(5);
    if (address.path.empty()) refuse(text, "there is no path");
    if (address.path.find('\0') != std::string::npos) refuse(text, "a path has no null byte");
    if (address.path.size() > kMostPathBytes) {
      refuse(text, concat("the path has ", address.path.size(), " bytes, the system takes ",
                          kMostPathBytes, " at most"));
    }
    return address;
  }
  if (!text.starts_with("tcp:")) refuse(text, "it names no kind of socket");
  const std::string rest = text.substr(4);
  const auto colon = rest.rfind(':');
  if (colon == std::string::npos) refuse(text, "there is no port");
  address.host = rest.substr(0, colon);
  address.port = port_of(text, rest.substr(colon + 1));
  if (address.host.starts_with('[') && address.host.ends_with(']')) {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    refuse(text, "an IPv6 host stands in brackets");
  }
  if (address.host.empty()) refuse(text, "there is no host");
  return address;
}

}  // namespace longhaul::runtime::net

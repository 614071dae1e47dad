#pragma once
// Where a server listens.

#include <string>

namespace longhaul::runtime::net {

/// "unix:PATH" or "tcp:HOST:PORT"; an IPv6 host stands in brackets.
struct Address {
  std::string path;  ///< of a Unix socket; empty: TCP
  std::string host;
  int port = 0;  ///< to listen on: 0 for any that is free
  bool is_unix() const { return !path.empty(); }
  std::string text() const;
  bool operator==(const Address&) const = default;
};

/// Throws Error(config) saying what was expected. A Unix socket's path is at most 107 bytes.
Address parse_address(const std::string& text);

}  // namespace longhaul::runtime::net

#pragma once
// How two processes begin a connection: each proves to the other that it knows the job's token,
// without telling it, and that it is the same build. The server sends a challenge, the client its
// proof and a challenge of its own, the server a welcome with its proof, or a refusal.

#include <optional>
#include <string>
#include <vector>

#include "runtime/net/frame.h"
#include "runtime/net/hmac.h"

namespace longhaul::runtime::net {

/// The secret of a job.
class Token {
 public:
  static constexpr std::size_t kFewestBytes = 16, kMostBytes = 4096;
  /// What a file holds, without line ends behind it. Throws Error(io) where it cannot be read,
  /// Error(config) where others may read it (mode & 077), or where it is too short or too long.
  static Token load(const std::string& path);
  explicit Token(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Kinds of the frames of a hello. Those of what follows it are larger.
enum HelloKind : std::uint16_t { kChallenge = 1, kProof, kWelcome, kRefusal, kAfterHello = 16 };

/// Most bytes of a hello's frame.
constexpr std::int64_t kMostHelloBytes = 4096;

/// The server's side of one connection.
class ServerHello {
 public:
  /// `build` is what both sides must be equal in.
  ServerHello(Token token, std::string build);
  /// To be sent first.
  Frame challenge() const;
  struct Judgement {
    Frame reply;          ///< welcome or refusal
    std::string client;   ///< what it calls itself
    std::string refused;  ///< why; empty: it is welcome
  };
  /// Of what the client answers. Throws Error(internal) for what is no proof.
  Judgement judge(const Frame& proof) const;

 private:
  const Token token_;
  const std::string build_;
  const Digest nonce_;
};

/// The client's side, to its end; `name` is for the server's messages. Throws Error(disagree) where
/// the server refuses, or is another build or does not know the token itself; Error(hang) past the
/// deadline; and as frames do.
void client_hello(const Socket& socket, const Token& token, const std::string& build,
                  const std::string& name, Deadline deadline);

}  // namespace longhaul::runtime::net

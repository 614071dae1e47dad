#include "runtime/net/hello.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "runtime/error.h"

namespace longhaul::runtime::net {
namespace {

constexpr const char* kHowToMake = "make one with: (umask 077; head -c 32 /dev/urandom | base64 > ";
constexpr std::size_t kMostText = 1000;  // of a build or a name

/// Bytes of a hello's frame, field behind field; a text's length stands before it.
class Fields {
 public:
  Fields& add(const Digest& digest) { return append(digest.data(), digest.size()); }
  Fields& add(std::string_view text) {
    const auto bytes = static_cast<std::uint32_t>(text.size());
    append(&bytes, sizeof(bytes));
    return append(text.data(), text.size());
  }
  std::span<const std::byte> bytes() const { return bytes_; }
  Frame frame(HelloKind kind) const {
    Frame made{kind, {}, Body(std::ssize(bytes_))};
    std::copy(bytes_.begin(), bytes_.end(), made.body.data());
    return made;
  }

 private:
  Fields& append(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), from, from + bytes);
    return *this;
  }
  std::vector<std::byte> bytes_;
};

/// The same, taken apart.
class Parts {
 public:
  explicit Parts(const Frame& frame) : rest_(frame.body.view()) {}
  Digest digest() {
    Digest made;
    std::memcpy(made.data(), take(made.size()), made.size());
    return made;
  }
  std::string text() {
    std::uint32_t bytes = 0;
    std::memcpy(&bytes, take(sizeof(bytes)), sizeof(bytes));
    return {reinterpret_cast<const char*>(take(bytes)), bytes};
  }

 private:
  const std::byte* take(std::size_t bytes) {
    if (bytes > rest_.size()) fail(ExitCode::internal, "a frame of the hello is too short");
    const std::byte* from = rest_.data();
    rest_ = rest_.subspan(bytes);
    return from;
  }
  std::span<const std::byte> rest_;
};

/// What both sides have said so far: each proves the token with a keyed hash of all of it.
struct Said {
  Digest server_nonce, client_nonce;
  std::string server_build, client_build, name;
  Digest proof(std::string_view side, const Token& token) const {
    Fields fields;
    fields.add(side).add(server_nonce).add(client_nonce);
    fields.add(server_build).add(client_build).add(name);
    return hmac_sha256(token.bytes(), fields.bytes());
  }
};
constexpr std::string_view kClient = "longhaul client", kServer = "longhaul server";

std::string builds_differ(const std::string& server, const std::string& client) {
  return "the server is '" + server + "', the job '" + client +
         "': start both from one build, on systems of one C library";
}

Frame refusal(const std::string& why) { return Fields().add(why).frame(kRefusal); }

}  // namespace

Token Token::load(const std::string& path) {
  const Socket file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (!file.open() || ::fstat(file.fd(), &status) != 0)
    fail(ExitCode::io, "token file ", path, ": ", std::strerror(errno), "; ", kHowToMake, path,
         ")");
  if (!S_ISREG(status.st_mode))
    fail(ExitCode::config, "token file ", path, " is no file of bytes; ", kHowToMake, path, ")");
  if ((status.st_mode & 077) != 0) {
    fail(ExitCode::config, "token file ", path, " has mode ", std::oct, status.st_mode & 0777,
         ": others may use it; expected 600 at most: chmod 600 ", path,
         ", and a new token if somebody may have read it");
  }
  std::vector<std::byte> bytes(kMostBytes + 1);
  const ssize_t got = ::pread(file.fd(), bytes.data(), bytes.size(), 0);
  if (got < 0) fail(ExitCode::io, "token file ", path, ": ", std::strerror(errno));
  bytes.resize(static_cast<std::size_t>(got));
  if (bytes.size() > kMostBytes)
    fail(ExitCode::config, "token file ", path, " has more than ", kMostBytes, " bytes");
  while (!bytes.empty() && (bytes.back() == std::byte{'\n'} || bytes.back() == std::byte{'\r'}))
    bytes.pop_back();
  if (bytes.size() < kFewestBytes)
    fail(ExitCode::config, "token file ", path, " has ", bytes.size(), " bytes; expected at least ",
         kFewestBytes, " that cannot be guessed: ", kHowToMake, path, ")");
  return Token(std::move(bytes));
}

ServerHello::ServerHello(Token token, std::string build)
    : token_(std::move(token)), build_(std::move(build)), nonce_(random_digest()) {}

Frame ServerHello::challenge() const { return Fields().add(nonce_).add(build_).frame(kChallenge); }

ServerHello::Judgement ServerHello::judge(const Frame& proof) const {
  if (proof.kind != kProof)
    fail(ExitCode::internal, "a frame of kind ", proof.kind, " in place of a proof of the token");
  Parts parts(proof);
  const Digest nonce = parts.digest(), shown = parts.digest();
  const std::string build = parts.text(), name = parts.text();
  const Said said{nonce_, nonce, build_, build, name};
  Judgement judgement;
  judgement.client = name;
  // Who does not know the token learns nothing else.
  if (!equal(shown, said.proof(kClient, token_))) {
    judgement.client.clear();
    judgement.refused = "its token is not this server's";
    judgement.reply = refusal("the job's token is not the server's; give both the same file");
  } else if (build != build_) {
    judgement.refused = builds_differ(build_, build);
    judgement.reply = refusal(judgement.refused);
  } else {
    judgement.reply = Fields().add(said.proof(kServer, token_)).frame(kWelcome);
  }
  return judgement;
}

void client_hello(const Socket& socket, const Token& token, const std::string& build,
                  const std::string& name, Deadline deadline) {
  LONGHAUL_CHECK(build.size() <= kMostText && name.size() <= kMostText, "texts of ", build.size(),
                 " and ", name.size(), " bytes in a hello");
  const Frame challenge = receive_frame(socket, kMostHelloBytes, deadline);
  if (challenge.kind != kChallenge)
    fail(ExitCode::internal, "a frame of kind ", challenge.kind, " in place of a challenge");
  Parts asked(challenge);
  const Digest server_nonce = asked.digest();
  const Said said{server_nonce, random_digest(), asked.text(), build, name};
  Fields proof;
  proof.add(said.client_nonce).add(said.proof(kClient, token)).add(build).add(name);
  send_frame(socket, proof.frame(kProof), deadline);

  const Frame reply = receive_frame(socket, kMostHelloBytes, deadline);
  if (reply.kind == kRefusal) fail(ExitCode::disagree, "it refuses: ", Parts(reply).text());
  if (reply.kind != kWelcome)
    fail(ExitCode::internal, "a frame of kind ", reply.kind, " in place of a welcome");
  if (!equal(Parts(reply).digest(), said.proof(kServer, token)))
    fail(ExitCode::disagree, "it does not know the job's token: it is no server of this job");
  if (said.server_build != build) fail(ExitCode::disagree, builds_differ(said.server_build, build));
}

}  // namespace longhaul::runtime::net

// Addresses, sockets and frames: what was cut short, mixed up or altered on the way is never used.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "runtime/net/frame.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::net {
namespace {

using test::expect_error;
using test::TempDirectory;

struct SocketPair {
  SocketPair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    a = Socket(fds[0]);
    b = Socket(fds[1]);
  }
  Socket a, b;
};

constexpr FrameId kId{0x1122334455667788, 41, 3, 2};

Frame sample(std::int64_t bytes) {
  Frame frame{17, kId, Body(bytes)};
  for (std::int64_t i = 0; i < bytes; ++i) frame.body.data()[i] = static_cast<std::byte>(i * 7);
  return frame;
}

/// The bytes that a frame is on the wire.
std::vector<std::byte> wire(std::int64_t bytes) {
  const SocketPair pair;
  send_frame(pair.a, sample(bytes), deadline_in(10));
  std::vector<std::byte> all(static_cast<std::size_t>(kFrameHeaderBytes + bytes + 1));
  const std::int64_t got = pair.b.read(all.data(), std::ssize(all));
  EXPECT_EQ(got, kFrameHeaderBytes + bytes);
  all.resize(static_cast<std::size_t>(got));
  return all;
}

/// What a reader makes of bytes, after which the connection ends; nothing when it refuses.
std::optional<Frame> read_back(std::span<const std::byte> bytes, std::int64_t most = 1 << 20) {
  SocketPair pair;
  EXPECT_EQ(pair.a.write(bytes.data(), std::ssize(bytes)), std::ssize(bytes));
  pair.a.close();
  try {
    return receive_frame(pair.b, most, deadline_in(10));
  } catch (const Error&) {
    return std::nullopt;
  }
}

TEST(Address, IsParsedAndPrinted) {
  const Address unix_address = parse_address("unix:/run/a b:c.sock");
  EXPECT_EQ(unix_address.path, "/run/a b:c.sock");
  const Address tcp = parse_address("tcp:node7.cluster:5000");
  EXPECT_EQ(tcp.host, "node7.cluster");
  EXPECT_EQ(tcp.port, 5000);
  const Address six = parse_address("tcp:[::1]:0");
  EXPECT_EQ(six.host, "::1");
  for (const char* text : {"unix:/run/a b:c.sock", "tcp:node7.cluster:5000", "tcp:[::1]:0"})
    EXPECT_EQ(parse_address(text).text(), text);
}

TEST(Address, SaysWhatIsWrong) {
  for (const char* text :
       {"", "/run/socket", "unix:", "tcp:", "tcp:host", "tcp::5000", "udp:a:1",
        "tcp:host:", "tcp:host:65536", "tcp:host:-1", "tcp:host:5x", "tcp:::1:5"})
    expect_error(ExitCode::config, "expected unix:PATH or tcp:HOST:PORT",
                 [&] { parse_address(text); });
  expect_error(ExitCode::config, "107", [] { parse_address("unix:/" + std::string(107, 'a')); });
  EXPECT_EQ(parse_address("unix:/" + std::string(106, 'a')).path.size(), 107u);
}

TEST(Frame, ArrivesAsItWasSentHoweverItIsCut) {
  for (const std::int64_t bytes : {0, 1, 7, 4096}) {
    const std::vector<std::byte> all = wire(bytes);
    const SocketPair pair;
    FrameReader reader;
    reader.set_most_body_bytes(bytes);
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_FALSE(reader.read(pair.b)) << i;
      EXPECT_EQ(pair.a.write(&all[i], 1), 1);
    }
    ASSERT_TRUE(reader.read(pair.b));
    const Frame got = reader.take(), sent = sample(bytes);
    EXPECT_EQ(got.kind, sent.kind);
    EXPECT_EQ(got.id, sent.id);
    ASSERT_EQ(got.body.bytes(), bytes);
    EXPECT_TRUE(std::ranges::equal(got.body.view(), sent.body.view()));
    EXPECT_FALSE(reader.begun());
  }
}

TEST(Frame, ThatIsCutShortAnywhereIsRefused) {
  const std::vector<std::byte> all = wire(40);
  for (std::size_t length = 0; length < all.size(); ++length)
    EXPECT_FALSE(read_back({all.data(), length})) << length;
  EXPECT_TRUE(read_back(all));
}

TEST(Frame, WithAnyOneBitFlippedIsRefused) {
  for (const std::int64_t bytes : {0, 1, 100}) {
    std::vector<std::byte> all = wire(bytes);
    for (std::size_t bit = 0; bit < 8 * all.size(); ++bit) {
      const std::byte mask{static_cast<unsigned char>(1u << (bit % 8))};
      all[bit / 8] ^= mask;
      EXPECT_FALSE(read_back(all)) << "bit " << bit << " of " << 8 * all.size();
      all[bit / 8] ^= mask;
    }
    EXPECT_TRUE(read_back(all));
  }
}

TEST(Frame, OfAnotherVersionSaysSo) {
  std::vector<std::byte> all = wire(8);
  all[4] = std::byte{kFrameVersion + 1};
  const SocketPair pair;
  pair.a.write(all.data(), std::ssize(all));
  expect_error(ExitCode::disagree, "version 2",
               [&] { receive_frame(pair.b, 100, deadline_in(10)); });
}

TEST(Frame, ThatIsTooLargeIsRefusedBeforeItsBodyComes) {
  std::vector<std::byte> all = wire(1000);
  all.resize(kFrameHeaderBytes);
  const SocketPair pair;
  pair.a.write(all.data(), std::ssize(all));
  expect_error(ExitCode::internal, "1000 bytes follow; expected at most 999",
               [&] { receive_frame(pair.b, 999, deadline_in(10)); });
}

TEST(Frame, WaitsNoLongerThanItsDeadline) {
  const SocketPair pair;
  expect_error(ExitCode::hang, "does not answer",
               [&] { receive_frame(pair.b, 100, deadline_in(0.05)); });
  expect_error(ExitCode::hang, "takes no more",  // nobody reads
               [&] { send_frame(pair.a, sample(1 << 22), deadline_in(0.05)); });
}

TEST(Listener, MakesASocketThatOnlyItsUserMayOpenAndRemovesIt) {
  const TempDirectory folder;
  const Address address = parse_address("unix:" + folder.file("s"));
  struct stat status {};
  {
    const Listener listener(address);
    ASSERT_EQ(::lstat(address.path.c_str(), &status), 0);
    EXPECT_TRUE(S_ISSOCK(status.st_mode));
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    const Socket client = connect_to(address, deadline_in(5));
    const auto server = listener.accept();
    ASSERT_TRUE(server);
    EXPECT_EQ(server->write(reinterpret_cast<const std::byte*>("x"), 1), 1);
    EXPECT_TRUE(client.wait_readable(deadline_in(5)));
    expect_error(ExitCode::launch, "a server listens there already",
                 [&] { const Listener second(address); });
  }
  EXPECT_FALSE(std::filesystem::exists(address.path));
  expect_error(ExitCode::io, "no connection", [&] { connect_to(address, deadline_in(1)); });
}

TEST(Listener, ReplacesWhatADeadServerLeftAndNothingElse) {
  const TempDirectory folder;
  const Address address = parse_address("unix:" + folder.file("s"));
  {  // as after kill -9: bound, and nobody listens
    const Socket dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un bound{};
    bound.sun_family = AF_UNIX;
    std::strcpy(bound.sun_path, address.path.c_str());
    ASSERT_EQ(::bind(dead.fd(), reinterpret_cast<sockaddr*>(&bound), sizeof(bound)), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(address.path));
  {
    Listener listener(address);
    connect_to(address, deadline_in(5));
    std::filesystem::remove(address.path);  // somebody else's from now on
    test::write_text(address.path, "a file");
  }
  EXPECT_EQ(test::read_text(address.path), "a file");
  expect_error(ExitCode::config, "no socket", [&] { const Listener listener(address); });
  EXPECT_EQ(test::read_text(address.path), "a file");
  expect_error(ExitCode::launch, "No such file",
               [&] { const Listener listener(parse_address("unix:" + folder.file("none/s"))); });
}

TEST(Listener, OfTcpSaysWhichPortItHas) {
  const Listener listener(parse_address("tcp:127.0.0.1:0"));
  EXPECT_GT(listener.address().port, 0);
  const Socket client = connect_to(listener.address(), deadline_in(5));
  EXPECT_TRUE(client.wait_writable(deadline_in(5)));
  expect_error(ExitCode::launch, "cannot listen",
               [&] { const Listener second(listener.address()); });
  expect_error(ExitCode::io, "no.such.host.invalid",
               [&] { connect_to(parse_address("tcp:no.such.host.invalid:5"), deadline_in(5)); });
}

}  // namespace
}  // namespace longhaul::runtime::net

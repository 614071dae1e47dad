// Keyed hashes by their published vectors, tokens, and who may connect to whom.
#include "runtime/net/hello.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <future>

#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime::net {
namespace {

using test::expect_error;
using test::TempDirectory;

std::vector<std::byte> bytes_of(const std::string& text) {
  std::vector<std::byte> bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}
std::string hex(const Digest& digest) {
  std::string text;
  for (const std::byte byte : digest) {
    char two[3];
    std::snprintf(two, sizeof(two), "%02x", std::to_integer<unsigned>(byte));
    text += two;
  }
  return text;
}

// FIPS 180-4's examples, and lengths around the padding's edges (checked with coreutils).
TEST(Sha256, HasThePublishedValues) {
  const auto of = [](const std::string& text) { return hex(sha256(bytes_of(text))); };
  EXPECT_EQ(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(of(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(of(std::string(55, 'a')),
            "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  EXPECT_EQ(of(std::string(64, 'a')),
            "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

// RFC 4231, section 4, test cases 1 to 4, 6 and 7.
TEST(Hmac, HasThePublishedValues) {
  const auto of = [](const std::string& key, const std::string& text) {
    return hex(hmac_sha256(bytes_of(key), bytes_of(text)));
  };
  EXPECT_EQ(of(std::string(20, '\x0b'), "Hi There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(of("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(of(std::string(20, '\xaa'), std::string(50, '\xdd')),
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
  std::string key;
  for (char c = 1; c <= 25; ++c) key += c;
  EXPECT_EQ(of(key, std::string(50, '\xcd')),
            "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
  EXPECT_EQ(of(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  EXPECT_EQ(of(std::string(131, '\xaa'),
               "This is a test using a larger than block-size key and a larger than block-size "
               "data. The key needs to be hashed before being used by the HMAC algorithm."),
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

TEST(Hmac, IsComparedWhole) {
  const Digest digest = random_digest();
  EXPECT_TRUE(equal(digest, digest));
  for (std::size_t i = 0; i < digest.size(); ++i) {
    Digest other = digest;
    other[i] ^= std::byte{1};
    EXPECT_FALSE(equal(digest, other)) << i;
  }
  EXPECT_FALSE(equal(digest, random_digest()));
}

TEST(Token, IsAFileThatNobodyElseMayRead) {
  const TempDirectory folder;
  const std::string path = folder.write("token", "0123456789abcdef0123\r\n\n");
  ::chmod(path.c_str(), 0600);
  EXPECT_EQ(Token::load(path).bytes().size(), 20u);
  ::chmod(path.c_str(), 0400);
  EXPECT_EQ(Token::load(path).bytes().size(), 20u);
  for (const unsigned mode : {0640u, 0604u, 0620u, 0601u, 0644u}) {
    ::chmod(path.c_str(), mode);
    expect_error(ExitCode::config, "chmod 600 " + path, [&] { Token::load(path); });
  }
  ::chmod(path.c_str(), 0600);
  test::write_text(path, "0123456789abcde\n");
  expect_error(ExitCode::config, "15 bytes; expected at least 16", [&] { Token::load(path); });
  test::write_text(path, std::string(Token::kMostBytes + 1, 'x'));
  expect_error(ExitCode::config, "more than 4096", [&] { Token::load(path); });
  expect_error(ExitCode::config, "is no file", [&] { Token::load(folder.path()); });
  expect_error(ExitCode::io, "make one with", [&] { Token::load(path + ".none"); });
}

/// What a client with these meets at a server with those.
struct Meeting {
  std::string server_refused, client_name;
  std::optional<Error> client_error;
};
Meeting meet(const std::string& server_token, const std::string& server_build,
             const std::string& client_token, const std::string& client_build,
             bool impostor = false) {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  const Socket server(fds[0]), client(fds[1]);
  Meeting meeting;
  auto served = std::async(std::launch::async, [&] {
    const ServerHello hello(Token(bytes_of(server_token)), server_build);
    send_frame(server, hello.challenge(), deadline_in(10));
    ServerHello::Judgement judgement =
        hello.judge(receive_frame(server, kMostHelloBytes, deadline_in(10)));
    meeting.server_refused = judgement.refused;
    meeting.client_name = judgement.client;
    if (impostor) judgement.reply = {kWelcome, {}, Body(32)};
    send_frame(server, std::move(judgement.reply), deadline_in(10));
  });
  try {
    client_hello(client, Token(bytes_of(client_token)), client_build, "rank 3", deadline_in(10));
  } catch (const Error& error) {
    meeting.client_error = error;
  }
  served.get();
  return meeting;
}

TEST(Hello, LetsInWhoKnowsTheTokenAndIsTheSameBuild) {
  const Meeting meeting = meet("a secret of a job", "build 1", "a secret of a job", "build 1");
  EXPECT_EQ(meeting.server_refused, "");
  EXPECT_EQ(meeting.client_name, "rank 3");
  EXPECT_FALSE(meeting.client_error) << meeting.client_error->what();
}

TEST(Hello, TellsBothSidesWhatDiffers) {
  Meeting meeting = meet("a secret of a job", "build 1", "a secret of a jo!", "build 1");
  EXPECT_NE(meeting.server_refused.find("token"), std::string::npos);
  EXPECT_EQ(meeting.client_name, "");
  ASSERT_TRUE(meeting.client_error);
  EXPECT_EQ(meeting.client_error->code(), ExitCode::disagree);
  EXPECT_NE(std::string(meeting.client_error->what()).find("token"), std::string::npos);

  meeting = meet("a secret of a job", "build 1", "a secret of a job", "build 2");
  ASSERT_TRUE(meeting.client_error);
  EXPECT_EQ(meeting.client_error->code(), ExitCode::disagree);
  for (const std::string& text :
       {meeting.server_refused, std::string(meeting.client_error->what())}) {
    EXPECT_NE(text.find("the server is 'build 1', the job 'build 2'"), std::string::npos) << text;
  }
}

TEST(Hello, DoesNotTrustAServerThatDoesNotKnowTheToken) {
  const Meeting meeting = meet("another secret!!", "build 1", "a secret of a job", "build 1", true);
  ASSERT_TRUE(meeting.client_error);
  EXPECT_EQ(meeting.client_error->code(), ExitCode::disagree);
  EXPECT_NE(std::string(meeting.client_error->what()).find("no server of this job"),
            std::string::npos);
}

TEST(Hello, AProofIsGoodForOneChallengeOnly) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  const Socket server(fds[0]), client(fds[1]);
  const Token token(bytes_of("a secret of a job"));
  const ServerHello hello(token, "b"), again(token, "b");
  send_frame(server, hello.challenge(), deadline_in(10));
  auto joined = std::async(std::launch::async,
                           [&] { client_hello(client, token, "b", "rank 0", deadline_in(10)); });
  const Frame proof = receive_frame(server, kMostHelloBytes, deadline_in(10));
  EXPECT_NE(again.judge(proof).refused, "");  // replayed
  auto judgement = hello.judge(proof);
  EXPECT_EQ(judgement.refused, "");
  send_frame(server, std::move(judgement.reply), deadline_in(10));
  joined.get();
}

TEST(Hello, RefusesWhatIsNone) {
  const ServerHello hello(Token(bytes_of("a secret of a job")), "b");
  expect_error(ExitCode::internal, "too short", [&] { hello.judge({kProof, {}, Body(40)}); });
  expect_error(ExitCode::internal, "kind 17", [&] { hello.judge({17, {}, Body(40)}); });
}

}  // namespace
}  // namespace longhaul::runtime::net

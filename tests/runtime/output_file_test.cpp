#include "runtime/io/output_file.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <iterator>

#include "runtime/io/corpus.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;
using test::expect_error;

mode_t kind_of(const fs::path& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 ? status.st_mode & S_IFMT : 0;
}

/// A socket bound to a path of the test's own; closed at the end.
class Socket {
 public:
  explicit Socket(const fs::path& path) : descriptor_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    bound_ = ::bind(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~Socket() { ::close(descriptor_); }
  bool bound() const { return bound_; }

 private:
  int descriptor_;
  bool bound_ = false;
};

std::ptrdiff_t entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), {});
}

TEST(OutputFile, OnlyRegularFilesAreReplacedAndOnlyWhenAsked) {
  const test::TempDirectory folder;
  const fs::path file = folder / "file";
  write_output({file, Existing::refuse}, "first");
  EXPECT_EQ(test::read_text(file), "first");
  expect_error(ExitCode::usage, "--force", [&] { OutputFile(file, Existing::refuse); });
  EXPECT_EQ(test::read_text(file), "first");
  write_output({file, Existing::replace}, "second");
  EXPECT_EQ(test::read_text(file), "second");
  EXPECT_EQ(entries(folder.path()), 1) << "something was left";
}

TEST(OutputFile, PipesSocketsAndFoldersStayWhatTheyAre) {
  const test::TempDirectory folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const Socket socket(folder / "socket");
  ASSERT_TRUE(socket.bound());
  fs::create_directory(folder / "folder");
  for (const char* name : {"pipe", "socket", "folder"}) {
    fs::create_symlink(folder / name, folder / (std::string("link to ") + name));
    for (const std::string& path : {std::string(name), std::string("link to ") + name}) {
      for (const Existing existing : {Existing::refuse, Existing::replace}) {
        const mode_t kind = kind_of(folder / name);
        expect_error(ExitCode::usage, "never replaced",
                     [&] { OutputFile(folder / path, existing); });
        EXPECT_EQ(kind_of(folder / name), kind) << path;
      }
    }
  }
  EXPECT_EQ(entries(folder.path()), 6) << "something was left";
}

TEST(OutputFile, ALinksTargetIsWrittenAndTheLinkStays) {
  const test::TempDirectory folder;
  fs::create_directories(folder / "far/away");
  test::write_text(folder / "far/away/real", "old");
  fs::create_symlink("away/real", folder / "far/near");  // relative to where the link lies
  fs::create_symlink(folder / "far/near", folder / "link");
  expect_error(ExitCode::usage, "--force", [&] { OutputFile(folder / "link", Existing::refuse); });
  write_output({folder / "link", Existing::replace}, "new");
  EXPECT_EQ(test::read_text(folder / "far/away/real"), "new");
  EXPECT_EQ(kind_of(folder / "link"), static_cast<mode_t>(S_IFLNK));
  EXPECT_EQ(kind_of(folder / "far/near"), static_cast<mode_t>(S_IFLNK));

  fs::create_symlink("far/away/later", folder / "dangling");  // nothing is there to replace
  write_output({folder / "dangling", Existing::refuse}, "made");
  EXPECT_EQ(test::read_text(folder / "far/away/later"), "made");
  EXPECT_EQ(kind_of(folder / "dangling"), static_cast<mode_t>(S_IFLNK));

  fs::create_symlink("b", folder / "a");
  fs::create_symlink("a", folder / "b");
  expect_error(ExitCode::usage, "circle", [&] { OutputFile(folder / "a", Existing::replace); });
}

TEST(OutputFile, WhatHasTheNameIsJudgedAgainAtTheRename) {
  const test::TempDirectory folder;
  for (const Existing existing : {Existing::refuse, Existing::replace}) {
    const OutputFile output(folder / "late", existing);
    test::write_text(folder / "finished", "result");
    ASSERT_EQ(::mkfifo((folder / "late").c_str(), 0600), 0);
    expect_error(ExitCode::usage, "never replaced", [&] { output.publish(folder / "finished"); });
    EXPECT_EQ(kind_of(folder / "late"), static_cast<mode_t>(S_IFIFO));
    fs::remove(folder / "late");
  }
  const OutputFile output(folder / "late", Existing::refuse);
  test::write_text(folder / "late", "somebody else's");
  expect_error(ExitCode::usage, "exists already", [&] { output.publish(folder / "finished"); });
  EXPECT_EQ(test::read_text(folder / "late"), "somebody else's");
}

TEST(OutputFile, AFolderThatCannotHoldItIsToldBeforehand) {
  const test::TempDirectory folder;
  expect_error(ExitCode::io, "there is no folder",
               [&] { OutputFile(folder / "nowhere/file", Existing::refuse); });
  test::write_text(folder / "plain", "");
  expect_error(ExitCode::io, "only a file of this name",
               [&] { OutputFile(folder / "plain/file", Existing::refuse); });
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::create_directory(folder / "closed");
  fs::permissions(folder / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  expect_error(ExitCode::io, "cannot be written to",
               [&] { OutputFile(folder / "closed/file", Existing::refuse); });
}

TEST(OutputFile, ACorpusBroughtToTheNextVersionKeepsItsLink) {
  const test::TempDirectory folder;
  {
    CorpusWriter writer(folder / "real.h5", 256, "bytes");
    writer.append(std::vector<std::int32_t>{1, 2, 3});
    writer.end_document();
    writer.finish();
  }
  fs::create_symlink("real.h5", folder / "link.h5");
  {  // what add_unigram_entropy() does to a corpus of version 1
    CorpusWriter writer(folder / "link.h5", Corpus::open(folder / "link.h5").info());
    writer.append(std::vector<std::int32_t>{4, 5});
    writer.end_document();
    writer.finish();
  }
  EXPECT_EQ(kind_of(folder / "link.h5"), static_cast<mode_t>(S_IFLNK));
  EXPECT_EQ(Corpus::open(folder / "real.h5").info().tokens, 2);
}

}  // namespace
}  // namespace longhaul::runtime

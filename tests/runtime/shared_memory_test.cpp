// Arenas: parts never overlap and are used again, other processes see them, and what cannot be is
// an error.
#include "runtime/shared_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "runtime/error.h"
#include "runtime/stream.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

/// Bytes that the arena's file holds, with the page (or huge page) of its token.
std::int64_t held(const SharedArena& arena) {
  struct stat status = {};
  EXPECT_EQ(stat(concat("/proc/self/fd/", arena.address().file).c_str(), &status), 0);
  return status.st_blocks * 512;
}

/// Runs `body` in a process of its own; its wait status.
template <class Body>
int in_process(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 101;
    try {
      code = body();
    } catch (const Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      code = static_cast<int>(error.code());
    }
    _exit(code);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}
template <class Body>
int code_of(const Body& body) {
  const int status = in_process(body);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(SharedMemory, PartsAreApartAndGivenBackWhole) {
  SharedArena arena(64 * kMiB);
  const std::int64_t empty = held(arena);
  std::mt19937 random(5);
  std::map<std::byte*, std::int64_t> live;
  const auto drop = [&](std::map<std::byte*, std::int64_t>::iterator part) {
    for (std::int64_t i = 0; i < part->second; ++i)
      ASSERT_EQ(part->first[i], std::byte(part->second % 251)) << i;
    arena.free(part->first, part->second);
    live.erase(part);
  };
  std::byte* first = nullptr;
  std::int64_t refused = 0;
  for (int step = 0; step < 2000; ++step) {
    if (random() % 100 < 45 && !live.empty()) {
      drop(std::next(live.begin(), static_cast<int>(random() % live.size())));
      continue;
    }
    const std::int64_t bytes = 1 + static_cast<std::int64_t>(random() % (2 * kMiB));
    std::byte* const data = arena.allocate(bytes);
    if (data == nullptr) {
      ++refused;
      continue;
    }
    if (first == nullptr) first = data;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 4096, 0u);
    EXPECT_TRUE(arena.offset_of(data + bytes - 1));
    const auto next = live.lower_bound(data);
    ASSERT_TRUE(next == live.end() || data + bytes <= next->first);
    ASSERT_TRUE(next == live.begin() || std::prev(next)->first + std::prev(next)->second <= data);
    std::memset(data, static_cast<int>(bytes % 251), static_cast<std::size_t>(bytes));
    live.emplace(data, bytes);
  }
  EXPECT_GT(refused, 0);  // at 64 MiB
  EXPECT_GT(held(arena), 16 * kMiB);
  while (!live.empty()) drop(live.begin());
  EXPECT_LT(held(arena), empty + kMiB);
  // The free ranges have joined: the first fit is where the first part lay.
  EXPECT_EQ(arena.allocate(60 * kMiB), first);
}

TEST(SharedMemory, HoldsNoMoreThanItIsTold) {
  SharedArena arena(8 * kMiB);
  EXPECT_EQ(arena.allocate(0), nullptr);
  EXPECT_EQ(arena.allocate(-1), nullptr);
  EXPECT_EQ(arena.allocate(std::int64_t{1} << 60), nullptr);
  EXPECT_EQ(arena.allocate(9 * kMiB), nullptr);
  std::byte* const most = arena.allocate(7 * kMiB);
  ASSERT_NE(most, nullptr);
  EXPECT_EQ(arena.allocate(2 * kMiB), nullptr);
  arena.free(most, 7 * kMiB);
  EXPECT_NE(arena.allocate(2 * kMiB), nullptr);
  std::byte other{};
  EXPECT_FALSE(arena.offset_of(&other));
  EXPECT_THROW(arena.free(&other, 1), Error);
  EXPECT_THROW(SharedArena(0), Error);
}

TEST(SharedMemory, TakesPagesWhenTheyAreTouchedUnlessItCommits) {
  for (const bool commits : {false, true}) {
    SharedArena arena(16 * kMiB, commits);
    const std::int64_t empty = held(arena);
    std::byte* const data = arena.allocate(10 * kMiB);
    EXPECT_EQ(held(arena) >= 10 * kMiB, commits);
    arena.free(data, 10 * kMiB);
    EXPECT_LT(held(arena), empty + kMiB);
  }
}

TEST(SharedMemory, APeerReadsWhatIsThereNow) {
  SharedArena arena(64 * kMiB);
  const PeerArena peer(arena.address());
  const auto seen = [&](const std::byte* data) { return peer.at(*arena.offset_of(data)); };
  std::byte* const data = arena.allocate(3 * kMiB);  // after it was mapped
  std::memset(data, 7, 3 * kMiB);
  EXPECT_NE(seen(data), data);
  EXPECT_EQ(std::memcmp(seen(data), data, 3 * kMiB), 0);
  EXPECT_EQ(peer.offset_of(seen(data) + 5), *arena.offset_of(data) + 5);
  arena.free(data, 3 * kMiB);
  std::byte* const again = arena.allocate(2 * kMiB);
  EXPECT_EQ(again, data);
  EXPECT_EQ(seen(again)[kMiB], std::byte{0});  // nothing of what lay there
  again[kMiB] = std::byte{9};
  EXPECT_EQ(seen(again)[kMiB], std::byte{9});
  EXPECT_THROW(static_cast<void>(peer.at(-1)), Error);
  EXPECT_THROW(static_cast<void>(peer.at(arena.address().bytes)), Error);
}

TEST(SharedMemory, APeerCannotWrite) {
  SharedArena arena(kMiB);
  const ArenaAddress address = arena.address();
  EXPECT_EQ(code_of([&] {
              signal(SIGSEGV, SIG_DFL);  // a sanitizer would report it
              const PeerArena peer(address);
              *const_cast<std::byte*>(peer.at(0)) = std::byte{1};
              return 0;
            }),
            -SIGSEGV);
}

TEST(SharedMemory, OutlivesItsOwnerForItsReadersAndThenIsGone) {
  int words[2], done[2];
  ASSERT_EQ(pipe(words), 0);
  ASSERT_EQ(pipe(done), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    SharedArena arena(64 * kMiB);
    std::byte* const data = arena.allocate(16 * kMiB);
    std::memset(data, 5, 16 * kMiB);
    const ArenaAddress address = arena.address();
    const std::int64_t offset = *arena.offset_of(data);
    char token = 0;
    if (write(words[1], &address, sizeof(address)) != sizeof(address) ||
        write(words[1], &offset, sizeof(offset)) != sizeof(offset) || read(done[0], &token, 1) != 1)
      _exit(1);
    raise(SIGKILL);
  }
  ArenaAddress address;
  std::int64_t offset = 0;
  ASSERT_EQ(read(words[0], &address, sizeof(address)), static_cast<ssize_t>(sizeof(address)));
  ASSERT_EQ(read(words[0], &offset, sizeof(offset)), static_cast<ssize_t>(sizeof(offset)));
  {
    const PeerArena peer(address);
    EXPECT_EQ(address.process, owner);
    ASSERT_EQ(write(done[1], "x", 1), 1);
    int status = 0;
    ASSERT_EQ(waitpid(owner, &status, 0), owner);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    for (std::int64_t i = 0; i < 16 * kMiB; i += 4096)
      ASSERT_EQ(peer.at(offset + i)[0], std::byte{5}) << i;
  }
  for (const int end : {words[0], words[1], done[0], done[1]}) close(end);
  try {
    const PeerArena gone(address);
    FAIL() << "a process that has ended";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::io);
    EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos) << error.what();
  }
}

TEST(SharedMemory, AnotherFileIsNoArena) {
  SharedArena arena(kMiB), other(kMiB), wide(3 * kMiB);
  const auto refusal = [](const ArenaAddress& address) {
    try {
      const PeerArena peer(address);
      return std::string("none");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::io);
      return std::string(error.what());
    }
  };
  ArenaAddress address = arena.address();
  EXPECT_EQ(refusal(address), "none");
  address.file = other.address().file;
  EXPECT_NE(refusal(address).find("another process's token"), std::string::npos);
  address.file = wide.address().file;
  EXPECT_NE(refusal(address).find("PID namespaces"), std::string::npos);
  address.file = 100'000;
  EXPECT_NE(refusal(address).find("No such file"), std::string::npos);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  address.file = ends[0];  // opening a pipe would wait for who writes
  EXPECT_NE(refusal(address).find("PID namespaces"), std::string::npos);
  close(ends[0]);
  close(ends[1]);
}

TEST(SharedMemory, WhatTheSystemRefusesIsAnErrorThatSaysSo) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer has taken the address space";
#endif
  const auto refused = [](int which, rlim_t limit, const std::string& text) {
    return code_of([&] {
      const rlimit limits{limit, limit};
      if (setrlimit(which, &limits) != 0) return 100;
      try {
        SharedArena arena(1024 * kMiB);
      } catch (const Error& error) {
        if (error.code() != ExitCode::memory) return 2;
        return std::string(error.what()).find(text) == std::string::npos ? 3 : 0;
      }
      return 1;
    });
  };
  EXPECT_EQ(refused(RLIMIT_AS, rlim_t{2048} * kMiB, "Cannot allocate memory"), 0);
  EXPECT_EQ(refused(RLIMIT_FSIZE, kMiB, "files are limited to 1.0 MiB (ulimit -f)"), 0);
  EXPECT_EQ(refused(RLIMIT_NOFILE, 3, "Too many open files"), 0);
}

TEST(SharedMemory, StreamsTakeAndGiveItBack) {
  EXPECT_EQ(code_of([] {
              const Stream earlier = Stream::cpu("earlier");
              Buffer before = earlier.allocate(1000);
              take_stream_memory_of(std::make_unique<SharedArena>(64 * kMiB));
              SharedArena& arena = *stream_memory_arena();
              const std::int64_t empty = held(arena);
              if (arena.offset_of(before.data())) return 1;
              {
                const Stream stream = Stream::cpu("shared");
                const Buffer buffer = stream.allocate(10 * kMiB);
                if (!arena.offset_of(buffer.data())) return 2;
                std::memset(buffer.data(), 1, 10 * kMiB);
                if (held(arena) < 10 * kMiB) return 3;
                try {
                  static_cast<void>(stream.allocate(60 * kMiB));
                  return 4;
                } catch (const Error& error) {
                  if (error.code() != ExitCode::memory) return 5;
                }
              }
              if (held(arena) > empty + kMiB) return 6;
              before = Buffer();  // to the allocator that it is of
              try {
                take_stream_memory_of(std::make_unique<SharedArena>(kMiB));
                return 7;
              } catch (const Error&) {
                return 0;
              }
            }),
            0);
}

}  // namespace
}  // namespace longhaul::runtime

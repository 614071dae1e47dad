// Stream-ordered memory: no two live buffers share a byte, and sizes that change settle.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "runtime/reserve.h"
#include "runtime/stream.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

TEST(Pool, IsReusedInStreamOrder) {
  const Stream stream = Stream::cpu("s");
  std::byte* first = nullptr;
  {
    const Buffer buffer = stream.allocate(1000);
    first = buffer.data();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 256, 0u);
    EXPECT_EQ(buffer.bytes(), 1000);
  }
  const Buffer second = stream.allocate(900);
  EXPECT_EQ(second.data(), first);
  const Buffer third = stream.allocate(900);
  EXPECT_NE(third.data(), first);
  const Stream other = Stream::cpu("other");
  EXPECT_NE(other.allocate(900).data(), first);
}

TEST(Pool, CountsLiveBytesAndTheirPeak) {
  const Stream stream = Stream::cpu("s");
  EXPECT_EQ(stream.memory().current_bytes, 0);
  {
    const Buffer a = stream.allocate(1000);
    Buffer b = stream.allocate(3);
    EXPECT_EQ(stream.memory().current_bytes, 1003);
    Buffer c = std::move(b);
    EXPECT_EQ(b.data(), nullptr);
    EXPECT_EQ(c.bytes(), 3);
    EXPECT_EQ(stream.memory().current_bytes, 1003);
    c = stream.allocate(7);
    const Buffer nothing = stream.allocate(0);
    EXPECT_NE(nothing.data(), nullptr);
  }
  EXPECT_EQ(stream.memory().current_bytes, 0);
  EXPECT_EQ(stream.memory().peak_bytes, 1010);
  EXPECT_EQ(stream.memory().buffers, 4);
  stream.reset_peak();
  EXPECT_EQ(stream.memory().peak_bytes, 0);
  EXPECT_THROW(stream.allocate(-1), Error);
}

TEST(Pool, WhatIsReservedIsHandedOutWithoutTheSystem) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  const Stream stream = Stream::cpu("reserved");
  const Buffer live = stream.allocate(5 * kMiB);
  const MemoryUse used = stream.memory();
  reserve_memory(stream, 0);
  EXPECT_EQ(stream.memory().held_bytes, used.held_bytes);
  const std::int64_t before = system_allocations();
  reserve_memory(stream, 20 * kMiB);
  EXPECT_EQ(system_allocations(), before + 1);
  EXPECT_GE(stream.memory().held_bytes, used.held_bytes + 20 * kMiB);
  EXPECT_EQ(stream.memory().current_bytes, used.current_bytes);
  EXPECT_EQ(stream.memory().peak_bytes, used.peak_bytes);
  EXPECT_EQ(stream.memory().buffers, used.buffers);
  reserve_memory(stream, 20 * kMiB);  // there is enough
  {
    const Buffer a = stream.allocate(7 * kMiB), b = stream.allocate(13 * kMiB);
    EXPECT_EQ(system_allocations(), before + 1);
    reserve_memory(stream, 20 * kMiB);  // beside those
    EXPECT_EQ(system_allocations(), before + 2);
  }
  EXPECT_THROW(reserve_memory(stream, -1), Error);
}

TEST(Pool, OutlivesItsStream) {
  Buffer buffer;
  {
    const Stream stream = Stream::cpu("s");
    buffer = stream.allocate(100);
  }
  buffer.data()[99] = std::byte{1};
}

TEST(Pool, LiveBuffersAreAlignedAndApart) {
  const Stream stream = Stream::cpu("pool");
  std::mt19937 random(7);
  struct Live {
    Buffer buffer;
    unsigned char mark;
  };
  std::vector<Live> live;
  std::int64_t bytes_live = 0, most = 0;
  for (int step = 0; step < 4000; ++step) {
    if (!live.empty() && random() % 100 < (step / 500 % 2 == 0 ? 40 : 60)) {
      const std::size_t which = random() % live.size();
      std::swap(live[which], live.back());
      const Live& going = live.back();
      for (std::int64_t i = 0; i < going.buffer.bytes(); ++i)
        ASSERT_EQ(static_cast<unsigned char>(going.buffer.data()[i]), going.mark) << "byte " << i;
      bytes_live -= going.buffer.bytes();
      live.pop_back();
    } else {
      const std::int64_t sizes[] = {0, 1, 7, 64, 255, 256, 257, 4099, 65536};
      const std::int64_t bytes = random() % 4 == 0 ? sizes[random() % std::size(sizes)]
                                                   : static_cast<std::int64_t>(random() % 20000);
      live.push_back({stream.allocate(bytes), static_cast<unsigned char>(random())});
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(live.back().buffer.data()) % 256, 0u);
      std::memset(live.back().buffer.data(), live.back().mark, static_cast<std::size_t>(bytes));
      bytes_live += bytes;
    }
    most = std::max(most, bytes_live);
    ASSERT_EQ(stream.memory().current_bytes, bytes_live);
    ASSERT_EQ(stream.memory().peak_bytes, most);
    ASSERT_GE(stream.memory().held_bytes, bytes_live);
  }
  live.clear();
  EXPECT_EQ(stream.memory().current_bytes, 0);
}

TEST(Pool, WhatIsGivenBackJoinsItsNeighbours) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  const Stream stream = Stream::cpu("pool");
  const std::int64_t before = system_allocations();
  for (int order = 0; order < 3; ++order) {
    std::vector<Buffer> parts;
    for (int i = 0; i < 8; ++i) parts.push_back(stream.allocate(kMiB / 4));
    EXPECT_EQ(stream.memory().held_bytes, 2 * kMiB);
    // From either end, and from the middle outwards.
    std::vector<int> turns{0, 1, 2, 3, 4, 5, 6, 7};
    if (order == 1) std::ranges::reverse(turns);
    if (order == 2) turns = {3, 5, 1, 7, 2, 4, 0, 6};
    for (const int i : turns) parts[static_cast<std::size_t>(i)] = Buffer();
    const Buffer whole = stream.allocate(2 * kMiB);
    EXPECT_EQ(stream.memory().held_bytes, 2 * kMiB) << "order " << order;
  }
  EXPECT_EQ(system_allocations() - before, 1);
}

TEST(Pool, SizesThatChangeSettle) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  // Every round takes buffers of sizes that it has never taken before, in a new order, as the
  // slots of one batch after another.
  const Stream stream = Stream::cpu("pool");
  std::mt19937 random(3);
  std::int64_t asked_halfway = 0;
  constexpr int kRounds = 400;
  for (int round = 0; round < kRounds; ++round) {
    if (round == kRounds / 2) asked_halfway = system_allocations();
    std::vector<Buffer> batch;
    for (int i = 0; i < 12; ++i) {
      batch.push_back(stream.allocate(static_cast<std::int64_t>(random() % (3 * kMiB))));
      if (random() % 4 == 0) batch.erase(batch.begin() + static_cast<int>(random() % batch.size()));
    }
  }
  EXPECT_EQ(system_allocations(), asked_halfway);
  const MemoryUse use = stream.memory();
  EXPECT_LT(use.held_bytes, use.peak_bytes + use.peak_bytes / 2)
      << use.held_bytes << " held for " << use.peak_bytes;
}

/// Runs `body` in a process of its own that may have `bytes` more than it has now; its exit code.
template <class Body>
int with_address_space(std::int64_t bytes, const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    std::ifstream statm("/proc/self/statm");
    std::int64_t pages = 0;
    statm >> pages;
    const auto limit = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + bytes);
    const rlimit limits{limit, limit};
    // Threads share one arena: the address space that each would reserve is not the test's.
    if (mallopt(M_ARENA_MAX, 1) != 1 || setrlimit(RLIMIT_AS, &limits) != 0) _exit(100);
    int code = 101;
    try {
      code = body();
    } catch (const Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      code = static_cast<int>(error.code());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    _exit(code);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Pool, WhatOtherStreamsDoNotUseIsGivenBackBeforeAnythingIsRefused) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer has taken the address space";
#endif
  // 512 MiB for everything, of which stacks and the allocator's own arenas want some.
  EXPECT_EQ(with_address_space(
                512 * kMiB,
                [] {
                  const Stream first = Stream::cpu("first"), second = Stream::cpu("second"),
                               asking = Stream::cpu("asking");
                  const Buffer kept = first.allocate(20 * kMiB);
                  std::atomic<bool> wrong{false};
                  for (const Stream& stream : {first, second}) {
                    const Buffer used = stream.allocate(120 * kMiB);
                    // Enqueued before the buffer is given back: the memory must outlive this.
                    stream.cpu_task([data = used.data(), &wrong] {
                      std::memset(data, 7, 120 * kMiB);
                      std::this_thread::sleep_for(std::chrono::milliseconds(200));
                      for (std::int64_t i = 0; i < 120 * kMiB; i += 4099)
                        wrong = wrong || data[i] != std::byte{7};
                    });
                  }
                  const Buffer large = asking.allocate(400 * kMiB);
                  std::memset(large.data(), 1, 400 * kMiB);
                  if (wrong) return 1;
                  if (first.memory().held_bytes > 30 * kMiB || second.memory().held_bytes > 0)
                    return 2;
                  return kept.bytes() == 20 * kMiB ? 0 : 3;
                }),
            0);
}

TEST(Pool, MemoryOfAStreamThatIsEndingIsKeptUntilItHasEnded) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer has taken the address space";
#endif
  EXPECT_EQ(with_address_space(512 * kMiB,
                               [] {
                                 std::atomic<bool> written{false}, asked{false}, wrong{false};
                                 std::thread owner([&] {
                                   const Stream ending = Stream::cpu("ending");
                                   const Buffer used = ending.allocate(200 * kMiB);
                                   ending.cpu_task([&, data = used.data()] {
                                     std::memset(data, 7, 200 * kMiB);
                                     written = true;
                                     asked.wait(false);
                                     for (std::int64_t i = 0; i < 200 * kMiB; i += 4099)
                                       wrong = wrong || data[i] != std::byte{7};
                                   });
                                 });  // gives the buffer back, and joins the stream's thread
                                 while (!written) std::this_thread::yield();
                                 std::this_thread::sleep_for(std::chrono::milliseconds(50));
                                 const Stream asking = Stream::cpu("asking");
                                 int refused = 0;
                                 try {
                                   asking.allocate(400 * kMiB);
                                 } catch (const Error& error) {
                                   refused = error.code() == ExitCode::memory;
                                 }
                                 asked = true;
                                 asked.notify_all();
                                 owner.join();
                                 const Buffer now = asking.allocate(400 * kMiB);
                                 return wrong ? 1 : refused == 1 ? 0 : 2;
                               }),
            0);
}

TEST(Pool, ATaskThatAllocatesIsRefusedAtOnce) {
  const Stream stream = Stream::cpu("small");
  stream.cpu_task([&stream] { static_cast<void>(stream.allocate(std::int64_t{1} << 60)); });
  try {
    stream.synchronize(deadline_in(10));
    FAIL() << "a buffer of 2^60 bytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::memory) << error.what();
  }
}

TEST(Pool, GrowthIsCapped) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "buffers are segments of their own under AddressSanitizer";
#endif
  const Stream stream = Stream::cpu("large");
  std::vector<Buffer> large;  // 10 GiB that nobody touches
  for (int i = 0; i < 5; ++i) large.push_back(stream.allocate(2048 * kMiB));
  const std::int64_t before = stream.memory().held_bytes;
  const Buffer small = stream.allocate(1);
  EXPECT_EQ(stream.memory().held_bytes - before, std::int64_t{1} << 30);
}

TEST(Pool, MoreThanTheSystemHasIsAnErrorAndLosesNothing) {
  const Stream stream = Stream::cpu("small");
  Buffer kept = stream.allocate(1000);
  std::memset(kept.data(), 5, 1000);
  const MemoryUse before = stream.memory();
  try {
    const Buffer never = stream.allocate(std::int64_t{1} << 60);
    FAIL() << "a buffer of 2^60 bytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::memory);
    EXPECT_NE(std::string(error.what()).find("(1152921504606846976 bytes) asked for"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(stream.memory().current_bytes, before.current_bytes);
  EXPECT_EQ(stream.memory().held_bytes, before.held_bytes);
  EXPECT_EQ(static_cast<int>(kept.data()[999]), 5);
  const Buffer next = stream.allocate(1000);
  EXPECT_NE(next.data(), kept.data());
}

}  // namespace
}  // namespace longhaul::runtime

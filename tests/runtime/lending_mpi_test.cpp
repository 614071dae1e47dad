// What ranks of one host lend each other over MPI: which memory, and how fast it is read.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime/peak.h"
#include "runtime/shared_memory.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

TEST(Lending, RanksOfAHostShareTheMemoryOfTheirStreams) {
  EXPECT_EQ(mpi_session().sharing_text(), "ranks may read each other's memory where it lies");
  EXPECT_TRUE(mpi_world().lends());
  ASSERT_NE(stream_memory_arena(), nullptr);
  const Stream stream = Stream::cpu("shared");
  const Buffer buffer = stream.allocate(1000);
  EXPECT_TRUE(stream_memory_arena()->offset_of(buffer.data()));
}

/// Memory that is not of a stream lies nowhere for the others: an error on its owner, and its peers
/// wait for it as for any rank that has failed.
TEST(Lending, OtherMemoryIsRefused) {
  const auto group = mpi_world().split(0, mpi_world().rank(), "short");
  group->set_timeout(1);
  std::vector<float> own(5);
  const auto memory = [&] {
    return std::make_shared<ConstTensorView>(reinterpret_cast<const std::byte*>(own.data()),
                                             DType::float32, Device{},
                                             std::initializer_list<std::int64_t>{5});
  };
  const Stream stream = Stream::cpu("other memory");
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  if (group->rank() == 0) {
    sends.push_back({.peer = 1, .parts = {}, .lent = {memory()}});
  } else if (group->rank() == 1) {
    receives.push_back({.peer = 0, .parts = {}, .borrowed = {memory()}});
  }
  group->exchange(std::move(sends), std::move(receives), "other memory", stream);
  try {
    stream.synchronize(deadline_in(60));
    EXPECT_GT(group->rank(), 1);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), group->rank() == 0 ? ExitCode::internal : ExitCode::hang)
        << error.what();
  }
}

/// Seconds of the stream's thread for a copy of `bytes` out of the memory of rank 0, the message
/// that lends it included, and for one of memory of its own; of the message by the clock.
struct Turn {
  double lent_seconds = 0, own_seconds = 0, message_seconds = 0;
};

TEST(LendingSpeed, WhatIsLentIsReadAsFastAsOwnMemory) {
  constexpr double kGoal = 0.90;
  Communicator& world = mpi_world();
  const Stream stream = Stream::cpu("speed");
  for (const std::int64_t mebibytes : {16, 64, 256}) {
    const std::int64_t bytes = mebibytes << 20;
    const Tensor from({bytes / 4}, DType::float32, stream), to({bytes / 4}, DType::float32, stream);
    fill(from, 1, stream);
    fill(to, 2, stream);
    const auto view = std::make_shared<ConstTensorView>(from.view());
    double best = 0;
    for (int attempt = 0; attempt < 3 && best < kGoal; ++attempt) {
      std::vector<double> lent, own, messages;
      for (int i = 0; i < 7; ++i) {
        const auto borrowed = std::make_shared<ConstTensorView>(*view);
        std::vector<SendMessage> sends;
        std::vector<ReceiveMessage> receives;
        if (world.rank() == 0) sends.push_back({.peer = 1, .parts = {}, .lent = {view}});
        if (world.rank() == 1) receives.push_back({.peer = 0, .parts = {}, .borrowed = {borrowed}});
        Turn turn;
        Clock::time_point begin;
        const auto copy = [&](const ConstTensorView& source) {
          std::memcpy(to.view().data(), source.data(), static_cast<std::size_t>(bytes));
        };
        world.barrier(stream);
        stream.cpu_task([&] {
          begin = Clock::now();
          turn.lent_seconds = -thread_cpu_seconds();
        });
        world.exchange(std::move(sends), std::move(receives), "lend", stream);
        stream.cpu_task([&] {
          turn.message_seconds = std::chrono::duration<double>(Clock::now() - begin).count();
          if (world.rank() == 1) copy(*borrowed);
          turn.lent_seconds += thread_cpu_seconds();
          turn.own_seconds = -thread_cpu_seconds();
          if (world.rank() == 1) copy(*view);
          turn.own_seconds += thread_cpu_seconds();
        });
        world.barrier(stream);
        stream.synchronize(deadline_in(60));
        if (i == 0) continue;  // pages are mapped when they are first read
        lent.push_back(turn.lent_seconds);
        own.push_back(turn.own_seconds);
        messages.push_back(turn.message_seconds);
      }
      const double ratio = median(own) / median(lent);
      best = std::max(best, ratio);
      if (world.rank() == 1) {
        std::fprintf(
            stderr, "%ld MiB: lent %.2f GB/s, memcpy %.2f GB/s: %.3f; the message %.0f us\n",
            mebibytes, static_cast<double>(bytes) / median(lent) * 1e-9,
            static_cast<double>(bytes) / median(own) * 1e-9, ratio, median(messages) * 1e6);
      }
      // All make as many attempts: rank 1's figure counts.
      const Tensor agreed({1}, DType::float64, stream);
      fill(agreed, world.rank() == 1 ? best : 0, stream);
      world.all_reduce(agreed, stream);
      stream.synchronize(deadline_in(60));
      best = *agreed.as<double>();
    }
    EXPECT_GE(best, kGoal / 2) << mebibytes << " MiB";
  }
}

}  // namespace
}  // namespace longhaul::test

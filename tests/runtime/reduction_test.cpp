// How reductions travel: rounds, bytes, staging memory, and adding while the next chunks arrive.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/comm/host_communicator.h"
#include "runtime/comm/transport.h"
#include "runtime/error.h"
#include "runtime/tensor.h"

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kKiB = 1024;
constexpr double kSeconds = 60;

/// Moves bytes through copies, and counts what each rank does. `before` runs in a rank's exchange
/// number n, from 1, before it waits for anybody.
class CountingTransport final : public Transport {
 public:
  explicit CountingTransport(int ranks)
      : exchanges(static_cast<std::size_t>(ranks)), sent(static_cast<std::size_t>(ranks)) {}

  void exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override {
    const auto self = static_cast<std::size_t>(info.self);
    {
      std::lock_guard lock(mutex_);
      ++exchanges[self];
      for (const Outgoing& message : sends) {
        sent[self] += message.bytes;
        mail_[{info.self, message.peer}].emplace_back(message.data, message.data + message.bytes);
      }
    }
    changed_.notify_all();
    if (before) before(info.self, exchanges[self]);
    std::unique_lock lock(mutex_);
    for (const Incoming& message : receives) {
      auto& box = mail_[{message.peer, info.self}];
      LONGHAUL_CHECK(changed_.wait_until(lock, deadline_in(kSeconds), [&] { return !box.empty(); }),
                     "no message");
      LONGHAUL_CHECK(std::ssize(box.front()) == message.bytes, "a message of another size");
      std::memcpy(message.data, box.front().data(), box.front().size());
      box.pop_front();
    }
  }

  std::vector<std::int64_t> exchanges, sent;
  std::function<void(int rank, std::int64_t number)> before;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> mail_;
};

template <class Body>
void with_ranks(const std::shared_ptr<CountingTransport>& transport, int ranks, const Body& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto world = HostCommunicator::world(transport, rank, ranks, kSeconds, nullptr);
      body(*world, Stream::cpu("reduce"));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Integers: their sums are exact in any order.
float value(int rank, std::int64_t element) {
  return static_cast<float>((element * 31 + rank * 7) % 1009);
}

TEST(Reduction, AtSixtyFourRanksTakesHalfTheRoundsOfSmallChunks) {
  constexpr int kRanks = 64;
  constexpr std::int64_t kSegment = 66'571;  // floats: 260 KiB, a prime
  // Staging of 4 MiB for all peers, which made chunks of 4 MiB / 63, took this many rounds.
  constexpr std::int64_t kSmallChunk = 4 * kKiB * kKiB / (kRanks - 1) / 4;
  constexpr std::int64_t kRoundsBefore = (kSegment + kSmallChunk - 1) / kSmallChunk;
  const auto transport = std::make_shared<CountingTransport>(kRanks);
  const Stream shared = Stream::cpu("inputs");
  const Tensor input({kRanks * kSegment}, DType::float32, shared);  // every rank's, to save memory
  for (std::int64_t i = 0; i < input.elements(); ++i) input.as<float>()[i] = value(0, i);
  std::atomic<std::int64_t> wrong{0}, staged{0};
  with_ranks(transport, kRanks, [&](Communicator& world, const Stream& stream) {
    const Tensor output({kSegment}, DType::float32, stream);
    world.reduce_scatter(input, output, std::vector<std::int64_t>(kRanks, kSegment), stream);
    stream.synchronize(deadline_in(kSeconds));
    for (std::int64_t i = 0; i < kSegment; ++i)
      wrong += output.as<float>()[i] != kRanks * value(0, world.rank() * kSegment + i);
    staged = std::max(staged.load(), stream.memory().peak_bytes - output.bytes());
  });
  EXPECT_EQ(wrong, 0);
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_LE(2 * transport->exchanges[static_cast<std::size_t>(rank)], kRoundsBefore);
    EXPECT_EQ(transport->sent[static_cast<std::size_t>(rank)], (kRanks - 1) * kSegment * 4);
  }
  EXPECT_EQ(staged, 2 * 63 * 256 * kKiB);
}

TEST(Reduction, StagingIsBounded) {
  // One rank's half of it, with peers that send nothing: the staging is taken beforehand.
  class Silent final : public Transport {
    void exchange(const ExchangeInfo&, std::span<const Outgoing>,
                  std::span<const Incoming> receives) override {
      for (const Incoming& message : receives)
        std::memset(message.data, 0, static_cast<std::size_t>(message.bytes));
    }
  };
  struct Case {
    int ranks;
    std::int64_t bytes;
  };
  for (const auto& [ranks, bytes] :
       {Case{2, 8192 * kKiB}, Case{17, 8192 * kKiB}, Case{512, 2 * 511 * 256 * kKiB},
        Case{4096, 256 * kKiB * kKiB}}) {
    const Stream stream = Stream::cpu("reduce");
    const auto world =
        HostCommunicator::world(std::make_shared<Silent>(), 0, ranks, kSeconds, nullptr);
    std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks), 0);
    counts[0] = bytes / 2 / (ranks - 1) / 4 + 1;  // floats: a chunk and one more
    const Tensor input({counts[0]}, DType::float32, stream),
        output({counts[0]}, DType::float32, stream);
    fill(input, 1, stream);
    world->reduce_scatter(input, output, counts, stream);
    stream.synchronize(deadline_in(kSeconds));
    const std::int64_t staged = stream.memory().peak_bytes - 2 * output.bytes();
    EXPECT_LE(staged, bytes) << ranks << " ranks";
    EXPECT_GT(staged, bytes - ranks * 8) << ranks << " ranks";  // chunks are whole elements
    EXPECT_EQ(output.as<float>()[counts[0] - 1], 1);
  }
}

TEST(Reduction, AddsWhileTheNextChunksArrive) {
  constexpr int kRanks = 3;
  constexpr std::int64_t kChunk = 524'288;  // floats: 2 MiB a peer
  constexpr std::int64_t kSegment = 8 * kChunk + 7;
  const auto transport = std::make_shared<CountingTransport>(kRanks);
  std::vector<std::atomic<float>*> outputs(kRanks);
  std::atomic<int> overlapped{0};
  // An exchange that begins before the chunk of the one before it has been added up: never, were
  // they one after the other.
  transport->before = [&](int rank, std::int64_t number) {
    if (number > 1 && outputs[static_cast<std::size_t>(rank)][(number - 1) * kChunk - 1] < 0)
      ++overlapped;
  };
  std::atomic<std::int64_t> wrong{0};
  with_ranks(transport, kRanks, [&](Communicator& world, const Stream& stream) {
    const Tensor input({kRanks * kSegment}, DType::float32, stream),
        output({kSegment}, DType::float32, stream);
    fill(output, -1, stream);
    stream.synchronize(deadline_in(kSeconds));
    for (std::int64_t i = 0; i < input.elements(); ++i)
      input.as<float>()[i] = value(world.rank(), i);
    outputs[static_cast<std::size_t>(world.rank())] =
        reinterpret_cast<std::atomic<float>*>(output.as<float>());
    world.reduce_scatter(input, output, std::vector<std::int64_t>(kRanks, kSegment), stream);
    stream.synchronize(deadline_in(kSeconds));
    for (std::int64_t i = 0; i < kSegment; ++i) {
      float expected = 0;
      for (int rank = 0; rank < kRanks; ++rank)
        expected += value(rank, world.rank() * kSegment + i);
      wrong += output.as<float>()[i] != expected;
    }
  });
  EXPECT_GT(overlapped, 0);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace longhaul::runtime

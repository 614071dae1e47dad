#include "launch/bench_exchange.h"

#include <algorithm>
#include <chrono>

#include "runtime/comm/gather.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::Communicator;
using runtime::Stream;
using runtime::Tensor;

constexpr double kTimeout = 600;

/// Of `count` exchanges, the slower rank's.
std::vector<double> slower_ranks(Communicator& world, const std::vector<double>& own,
                                 const Stream& stream) {
  std::vector<double> slower = own;
  const auto ranks = runtime::gather_numbers(world, own, stream, runtime::deadline_in(kTimeout));
  for (const auto& rank : ranks) {
    for (std::size_t i = 0; i < rank.size(); ++i) slower[i] = std::max(slower[i], rank[i]);
  }
  return slower;
}

/// One kind of exchange, of two tensors.
class Exchange {
 public:
  Exchange(Communicator& world, std::int64_t bytes, bool both_ways, const Stream& stream)
      : world_(world),
        both_ways_(both_ways),
        stream_(stream),
        out_({bytes}, runtime::DType::uint8, stream),
        in_({bytes}, runtime::DType::uint8, stream) {
    runtime::fill(out_, 1, stream_);
    runtime::fill(in_, 0, stream_);
  }

  /// Seconds that this rank took.
  double once() const {
    const int peer = 1 - world_.rank();
    std::vector<runtime::SendMessage> sends;
    std::vector<runtime::ReceiveMessage> receives;
    if (both_ways_ || world_.rank() == 0) sends.push_back({peer, {out_}});
    if (both_ways_ || world_.rank() == 1) receives.push_back({peer, {in_}});
    world_.barrier(stream_);
    stream_.synchronize(runtime::deadline_in(kTimeout));
    const auto begin = runtime::Clock::now();
    world_.exchange(std::move(sends), std::move(receives), "a message to time", stream_);
    stream_.synchronize(runtime::deadline_in(kTimeout));
    return std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  }

  std::vector<double> times(int count) const {
    std::vector<double> own;
    for (int i = 0; i < count; ++i) own.push_back(once());
    return slower_ranks(world_, own, stream_);
  }

 private:
  Communicator& world_;
  const bool both_ways_;
  const Stream stream_;
  const Tensor out_, in_;
};

}  // namespace

std::vector<ExchangeTimes> measure_exchanges(Communicator& world, const Repeats& repeats) {
  LONGHAUL_CHECK(world.size() == 2, "exchanges are timed between 2 ranks, not ", world.size());
  const Stream stream = Stream::cpu("exchange");
  std::vector<ExchangeTimes> all;
  for (const std::int64_t mebibytes : {1, 16, 64}) {
    for (const bool both_ways : {false, true}) {
      const std::int64_t bytes = mebibytes << 20;
      const Exchange exchange(world, bytes, both_ways, stream);
      const double last = exchange.times(repeats.warm_up).back();  // the same on both ranks
      all.push_back({bytes, both_ways, spread_of(exchange.times(repetitions(repeats, last)))});
    }
  }
  return all;
}

}  // namespace longhaul::launch

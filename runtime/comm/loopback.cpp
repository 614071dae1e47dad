#include "runtime/comm/loopback.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>

#include "runtime/comm/host_communicator.h"
#include "runtime/comm/transport.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

/// What a waiting rank gets when another one has failed.
class Released : public Error {
 public:
  using Error::Error;
};

/// Messages are read straight from the sender's memory: a send completes when it has been received.
class Hub final : public Transport {
 public:
  explicit Hub(const LoopbackOptions& options) : options_(options) {}

  void exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  /// All ranks are threads of one process.
  bool share_memory(int, int) const override { return true; }
  SharedPlace place_of(const std::byte* data) const override {
    return {0, reinterpret_cast<std::intptr_t>(data)};
  }
  const std::byte* at(const SharedPlace& place) const override {
    return reinterpret_cast<const std::byte*>(place.offset);
  }
  /// Ends all waits, now and later, with an error.
  void release(const std::string& reason);

 private:
  /// An exchange under way; lives on its thread's stack.
  struct Party {
    std::condition_variable changed;
    std::vector<bool> sent;
    int sends_open = 0;    // neither received nor withdrawn
    int being_copied = 0;  // taken by a receiver that still reads our memory
  };
  struct Post {
    const std::byte* data = nullptr;
    std::int64_t bytes = 0;
    Clock::time_point ready;
    Party* sender = nullptr;
    std::size_t index = 0;  // among the sender's messages
  };
  struct Channel {
    std::deque<Post> posts;
    Party* receiver = nullptr;
  };
  using Lock = std::unique_lock<std::mutex>;

  Channel& channel(int context, int from, int to) { return channels_[{context, from, to}]; }
  void post(const ExchangeInfo& info, std::span<const Outgoing> sends, Party& party);
  /// Receives what can be received now; the time at which more will be ready if nothing could.
  std::optional<Clock::time_point> receive_ready(const ExchangeInfo& info,
                                                 std::span<const Incoming> receives,
                                                 std::vector<bool>& received, Lock& lock);
  void take(Channel& from, const ExchangeInfo& info, const Incoming& message, Lock& lock);
  void withdraw(const ExchangeInfo& info, std::span<const Outgoing> sends,
                std::span<const Incoming> receives, Party& party, Lock& lock);

  const LoopbackOptions options_;
  std::mutex mutex_;
  std::map<std::tuple<int, int, int>, Channel> channels_;  // (context, sender, receiver)
  std::string released_;
};

/// In [0, 1), from a hash of the words.
double fraction(std::initializer_list<std::uint64_t> words) {
  std::uint64_t x = 0x9e3779b97f4a7c15ull;
  for (const std::uint64_t word : words) {
    x = (x ^ word) * 0xbf58476d1ce4e5b9ull;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) / static_cast<double>(std::uint64_t{1} << 53);
}

void Hub::post(const ExchangeInfo& info, std::span<const Outgoing> sends, Party& party) {
  const Clock::time_point now = Clock::now();
  for (std::size_t i = 0; i < sends.size(); ++i) {
    double delay = options_.latency_seconds;
    if (options_.bandwidth_bytes_per_second > 0) {
      std::int64_t bytes = sends[i].bytes;  // and what goes before it on the same link
      for (std::size_t before = 0; before < i; ++before)
        bytes += sends[before].peer == sends[i].peer ? sends[before].bytes : 0;
      delay += static_cast<double>(bytes) / options_.bandwidth_bytes_per_second;
    }
    delay +=
        options_.jitter_seconds *
        fraction({options_.jitter_seed, static_cast<std::uint64_t>(info.context),
                  static_cast<std::uint64_t>(info.self), static_cast<std::uint64_t>(sends[i].peer),
                  static_cast<std::uint64_t>(info.sequence)});
    const auto ready =
        now + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(delay));
    Channel& to = channel(info.context, info.self, sends[i].peer);
    to.posts.push_back({sends[i].data, sends[i].bytes, ready, &party, i});
    if (to.receiver != nullptr) to.receiver->changed.notify_one();
  }
}

void Hub::take(Channel& from, const ExchangeInfo& info, const Incoming& message, Lock& lock) {
  const Post post = from.posts.front();
  from.posts.pop_front();
  ++post.sender->being_copied;
  if (post.bytes == message.bytes) {
    lock.unlock();
    std::memcpy(message.data, post.data, static_cast<std::size_t>(post.bytes));
    lock.lock();
  }
  --post.sender->being_copied;
  --post.sender->sends_open;
  post.sender->sent[post.index] = true;
  post.sender->changed.notify_one();
  LONGHAUL_CHECK(post.bytes == message.bytes, "rank ", info.self, " expects ", message.bytes,
                 " bytes from rank ", message.peer, " in '", info.what, "' (operation ",
                 info.sequence, " of communicator '", info.communicator, "'), which sent ",
                 post.bytes);
}

std::optional<Clock::time_point> Hub::receive_ready(const ExchangeInfo& info,
                                                    std::span<const Incoming> receives,
                                                    std::vector<bool>& received, Lock& lock) {
  bool progress = false;
  Clock::time_point next = Clock::time_point::max();
  for (std::size_t i = 0; i < receives.size(); ++i) {
    if (received[i]) continue;
    Channel& from = channel(info.context, receives[i].peer, info.self);
    if (from.posts.empty()) continue;
    if (from.posts.front().ready > Clock::now()) {
      next = std::min(next, from.posts.front().ready);
      continue;
    }
    // A channel's receives are in order, and its front was ready: nothing before this one is open.
    bool first = true;
    for (std::size_t before = 0; before < i; ++before) {
      first = first && (received[before] || receives[before].peer != receives[i].peer);
    }
    if (!first) continue;
    take(from, info, receives[i], lock);
    received[i] = true;
    progress = true;
  }
  if (progress) return std::nullopt;
  return next;
}

void Hub::withdraw(const ExchangeInfo& info, std::span<const Outgoing> sends,
                   std::span<const Incoming> receives, Party& party, Lock& lock) {
  for (const Outgoing& message : sends) {
    std::erase_if(channel(info.context, info.self, message.peer).posts,
                  [&](const Post& post) { return post.sender == &party; });
  }
  for (const Incoming& message : receives)
    channel(info.context, message.peer, info.self).receiver = nullptr;
  party.changed.wait(lock, [&] { return party.being_copied == 0; });
}

void Hub::exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                   std::span<const Incoming> receives) {
  const Clock::time_point begin = Clock::now();
  const Deadline deadline = deadline_in(info.timeout_seconds);
  Party party;
  party.sent.resize(sends.size());
  party.sends_open = static_cast<int>(sends.size());
  std::vector<bool> received(receives.size());
  Lock lock(mutex_);
  for (const Incoming& message : receives)
    channel(info.context, message.peer, info.self).receiver = &party;
  post(info, sends, party);
  try {
    for (;;) {
      const auto next = receive_ready(info, receives, received, lock);
      if (party.sends_open == 0 && std::ranges::all_of(received, std::identity{})) break;
      if (!next) continue;
      if (!released_.empty()) throw Released(ExitCode::internal, released_);
      if (Clock::now() >= deadline) {
        std::vector<MissingPeer> missing;
        for (std::size_t i = 0; i < receives.size(); ++i) {
          if (!received[i]) missing.push_back({receives[i].peer, receives[i].bytes, false});
        }
        for (std::size_t i = 0; i < sends.size(); ++i) {
          if (!party.sent[i]) missing.push_back({sends[i].peer, sends[i].bytes, true});
        }
        fail_hang(info, std::chrono::duration<double>(Clock::now() - begin).count(), missing);
      }
      party.changed.wait_until(lock, std::min(*next, deadline));
    }
  } catch (...) {
    withdraw(info, sends, receives, party, lock);
    throw;
  }
  for (const Incoming& message : receives)
    channel(info.context, message.peer, info.self).receiver = nullptr;
}

void Hub::release(const std::string& reason) {
  std::lock_guard lock(mutex_);
  released_ = reason;
  for (auto& [key, channel] : channels_) {
    if (channel.receiver != nullptr) channel.receiver->changed.notify_all();
    for (const Post& post : channel.posts) post.sender->changed.notify_all();
  }
}

}  // namespace

void run_loopback(int ranks, const LoopbackOptions& options,
                  const std::function<void(std::unique_ptr<Communicator>)>& body) {
  LONGHAUL_CHECK(ranks >= 1, "loopback needs at least one rank, got ", ranks);
  LONGHAUL_CHECK(options.recorders.empty() || static_cast<int>(options.recorders.size()) == ranks,
                 "loopback of ", ranks, " ranks got ", options.recorders.size(),
                 " flight recorders");
  const auto hub = std::make_shared<Hub>(options);
  std::mutex mutex;
  std::exception_ptr first_error, first_release;
  const auto failed = [&](int rank, std::exception_ptr error, const char* what, bool release) {
    {
      std::lock_guard lock(mutex);
      std::exception_ptr& first = release ? first_release : first_error;
      if (!first) first = std::move(error);
    }
    hub->release(concat("released, because rank ", rank, " failed: ", what));
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto work = [&, rank] {
      set_thread_rank(concat("rank ", rank));
      try {
        FlightRecorder* recorder =
            options.recorders.empty() ? nullptr : options.recorders[static_cast<std::size_t>(rank)];
        body(HostCommunicator::world(hub, rank, ranks, options.timeout_seconds, recorder));
      } catch (const Released& error) {
        failed(rank, std::current_exception(), error.what(), true);
      } catch (const std::exception& error) {
        failed(rank, std::current_exception(), error.what(), false);
      } catch (...) {
        failed(rank, std::current_exception(), "unknown exception", false);
      }
    };
    try {
      threads.push_back(start_thread(concat("rank ", rank), work));
    } catch (const std::exception& error) {  // those that have started must not wait for it
      failed(rank, std::current_exception(), error.what(), false);
      break;
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
  if (first_release) std::rethrow_exception(first_release);
}

}  // namespace longhaul::runtime

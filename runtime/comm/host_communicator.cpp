#include "runtime/comm/host_communicator.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <numeric>
#include <utility>

#include "runtime/comm/lending.h"
#include "runtime/comm/ordered_sum.h"
#include "runtime/comm/staging.h"
#include "runtime/flight.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

/// Context ids of one rank. A communicator takes two: the second carries split(), which the host
/// runs while a stream may still be busy with the first.
struct Contexts {
  std::mutex mutex;
  int next = 2;
};

/// First element of each rank's segment, and the end.
std::vector<std::int64_t> offsets_of(std::span<const std::int64_t> counts) {
  std::vector<std::int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

void copy_bytes(std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, static_cast<std::size_t>(bytes));
}

// Staging of a reduction, whatever its size: two buffers of one chunk a peer. A chunk is what makes
// a message worth its latency, and more where the peers are few; beyond 512 peers it shrinks again.
constexpr std::int64_t kChunkBytes = std::int64_t{256} << 10;
constexpr std::int64_t kLeastBufferBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMostBufferBytes = std::int64_t{128} << 20;

}  // namespace

struct HostCommunicator::Core {
  std::shared_ptr<Transport> transport;
  std::shared_ptr<Contexts> contexts;
  std::vector<int> members;  // world rank of each rank
  int rank = 0;
  int context = 0;
  std::string name;
  double timeout_seconds = 0;  // of operations issued from now on
  FlightRecorder* recorder = nullptr;
  std::atomic<std::int64_t> sent_bytes{0};
  std::vector<std::int64_t> exchanged_bytes;  // by peer; written by the thread that enqueues
  std::atomic<std::int64_t> sequence{0};

  int size() const { return static_cast<int>(members.size()); }
  int world_rank(int peer) const { return members[static_cast<std::size_t>(peer)]; }
  ExchangeInfo next(const std::string& what) {
    return {context, world_rank(rank), name, what, sequence++, timeout_seconds};
  }
  void run(const ExchangeInfo& info, std::span<const Outgoing> sends,
           std::span<const Incoming> receives);
  void check_peer(int peer, const std::string& what) const {
    LONGHAUL_CHECK(0 <= peer && peer < size(), what, " names rank ", peer, " of communicator '",
                   name, "', which has ", size());
  }
  void check_counts(std::span<const std::int64_t> counts, const char* what) const {
    LONGHAUL_CHECK(static_cast<int>(counts.size()) == size(), what, " on '", name, "' got ",
                   counts.size(), " counts for ", size(), " ranks");
    for (const std::int64_t count : counts)
      LONGHAUL_CHECK(count >= 0, what, " got a count of ", count);
  }
};

namespace {
using Core = HostCommunicator::Core;

/// A group being put together: drops empty messages and turns ranks into world ranks.
struct Group {
  explicit Group(const Core& core) : core(core) {}
  void send(int peer, const std::byte* data, std::int64_t bytes) {
    if (bytes > 0) sends.push_back({core.world_rank(peer), data, bytes});
  }
  void receive(int peer, std::byte* data, std::int64_t bytes) {
    if (bytes > 0) receives.push_back({core.world_rank(peer), data, bytes});
  }
  std::int64_t send_bytes() const {
    std::int64_t bytes = 0;
    for (const Outgoing& message : sends) bytes += message.bytes;
    return bytes;
  }
  const Core& core;
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
};

/// Peers in the order that spreads the load: at each step everybody talks to somebody else.
template <class Body>
void for_each_peer(const Core& core, const Body& body) {
  for (int step = 1; step < core.size(); ++step) {
    body((core.rank + step) % core.size());
  }
}

void check_contiguous(const ConstTensorView& view, std::int64_t elements, const char* what,
                      const char* role, const Stream& stream) {
  detail::require_same_device(view, stream);
  LONGHAUL_CHECK(view.contiguous(), what, " needs a contiguous ", role);
  LONGHAUL_CHECK(view.elements() == elements, what, ": ", role, " has ", view.elements(),
                 " elements; the counts ask for ", elements);
}

void check_same_dtype(const ConstTensorView& input, const TensorView& output, const char* what) {
  LONGHAUL_CHECK(input.dtype() == output.dtype(), what, ": input is ", name(input.dtype()),
                 ", output ", name(output.dtype()));
}

/// output[own segment] <- sum over ranks of input's segment, in rank order, a chunk of each peer at
/// a time. `staged` holds two buffers of size()-1 chunks of `chunk` elements: while one is added
/// up, the next chunks arrive in the other. Runs on a stream's thread.
struct OrderedReduce {
  std::shared_ptr<Core> core;
  ExchangeInfo info;
  DType dtype;
  std::vector<std::int64_t> offsets;
  const std::byte* input;
  std::byte* output;
  std::byte* staged;
  std::int64_t chunk;

  std::int64_t count_of(int rank) const {
    return offsets[static_cast<std::size_t>(rank) + 1] - offsets[static_cast<std::size_t>(rank)];
  }

  /// Exchanges the chunks that begin at element `begin` of each segment; the terms of this rank's
  /// sum, in rank order.
  std::vector<const std::byte*> exchange(std::int64_t begin, std::byte* buffer) const {
    const std::int64_t width = size_bytes(dtype);
    const auto part = [&](int rank) {
      return std::clamp<std::int64_t>(count_of(rank) - begin, 0, chunk);
    };
    const auto segment = [&](int rank) {
      return input + (offsets[static_cast<std::size_t>(rank)] + begin) * width;
    };
    const std::int64_t own = part(core->rank);
    Group group(*core);
    std::vector<const std::byte*> terms(static_cast<std::size_t>(core->size()));
    terms[static_cast<std::size_t>(core->rank)] = segment(core->rank);
    for_each_peer(*core, [&](int peer) {
      group.send(peer, segment(peer), part(peer) * width);
      group.receive(peer, buffer, own * width);
      terms[static_cast<std::size_t>(peer)] = buffer;
      if (own > 0) buffer += chunk * width;
    });
    core->run(info, group.sends, group.receives);
    return terms;
  }

  void operator()() const {
    const std::int64_t width = size_bytes(dtype), own = count_of(core->rank);
    const std::int64_t buffer_bytes = chunk * width * (core->size() - 1);
    const int threads = omp_get_max_threads();  // of this stream
    std::int64_t longest = 0;
    for (int rank = 0; rank < core->size(); ++rank) longest = std::max(longest, count_of(rank));
    std::future<void> adding;  // of the chunks before; its destructor waits
    for (std::int64_t begin = 0; begin < longest; begin += chunk) {
      std::byte* const buffer = own == 0 ? nullptr : staged + begin / chunk % 2 * buffer_bytes;
      auto terms = exchange(begin, buffer);
      if (adding.valid()) adding.get();
      const std::int64_t elements = std::clamp<std::int64_t>(own - begin, 0, chunk);
      const auto add = [terms = std::move(terms), to = output + begin * width, elements, threads,
                        dtype = dtype] {
        omp_set_num_threads(threads);
        detail::ordered_sum(terms, to, elements, dtype);
      };
      if (begin + chunk < longest && elements > 0) {
        adding = start_async("a reduction", add);
      } else {
        add();
      }
    }
    if (adding.valid()) adding.get();
  }
};

/// Elements of one chunk of a reduction; the same on every rank.
std::int64_t reduce_chunk(std::span<const std::int64_t> counts, DType dtype) {
  const std::int64_t longest = *std::ranges::max_element(counts);
  const auto peers = std::max<std::int64_t>(1, std::ssize(counts) - 1);
  const std::int64_t buffer = std::clamp(peers * kChunkBytes, kLeastBufferBytes, kMostBufferBytes);
  const std::int64_t fitting = std::max<std::int64_t>(1, buffer / (peers * size_bytes(dtype)));
  return std::max<std::int64_t>(1, std::min(longest, fitting));
}

void check_sum_dtype(DType dtype, const char* what) {
  LONGHAUL_CHECK(dtype == DType::float32 || dtype == DType::float64, what,
                 " sums float32 or float64, not ", name(dtype));
}

}  // namespace

std::vector<std::int64_t> even_counts(std::int64_t elements, int ranks) {
  std::vector<std::int64_t> counts;
  for (std::int64_t r = 0; r < ranks; ++r)
    counts.push_back(elements * (r + 1) / ranks - elements * r / ranks);
  return counts;
}

void HostCommunicator::Core::run(const ExchangeInfo& info, std::span<const Outgoing> sends,
                                 std::span<const Incoming> receives) {
  if (sends.empty() && receives.empty()) return;
  const int first = receives.empty() ? sends.front().peer : receives.front().peer;
  const auto is_first = [&](const auto& message) { return message.peer == first; };
  const bool one_peer =
      std::ranges::all_of(sends, is_first) && std::ranges::all_of(receives, is_first);
  const FlightScope record(recorder,
                           {info.what, info.communicator, one_peer ? first : -1, info.sequence});
  transport->exchange(info, sends, receives);
}

HostCommunicator::HostCommunicator(std::shared_ptr<Core> core) : core_(std::move(core)) {}

std::unique_ptr<HostCommunicator> HostCommunicator::world(std::shared_ptr<Transport> transport,
                                                          int rank, int size,
                                                          double timeout_seconds,
                                                          FlightRecorder* recorder) {
  auto core = std::make_shared<Core>();
  core->transport = std::move(transport);
  core->contexts = std::make_shared<Contexts>();
  core->members.resize(static_cast<std::size_t>(size));
  std::iota(core->members.begin(), core->members.end(), 0);
  core->exchanged_bytes.resize(core->members.size());
  core->rank = rank;
  core->name = "world";
  core->timeout_seconds = timeout_seconds;
  core->recorder = recorder;
  return std::make_unique<HostCommunicator>(std::move(core));
}

void HostCommunicator::record_to(FlightRecorder* recorder) { core_->recorder = recorder; }

int HostCommunicator::rank() const { return core_->rank; }
int HostCommunicator::size() const { return core_->size(); }
const std::string& HostCommunicator::name() const { return core_->name; }
std::int64_t HostCommunicator::sent_bytes() const { return core_->sent_bytes; }
double HostCommunicator::set_timeout(double seconds) {
  return std::exchange(core_->timeout_seconds, seconds);
}
void HostCommunicator::reset_sent_bytes() {
  core_->sent_bytes = 0;
  core_->exchanged_bytes.assign(core_->members.size(), 0);
}
std::span<const std::int64_t> HostCommunicator::exchanged_bytes() const {
  return core_->exchanged_bytes;
}

bool HostCommunicator::lends() const {
  return std::ranges::all_of(core_->members, [&](int member) {
    return core_->transport->share_memory(core_->members.front(), member);
  });
}

void HostCommunicator::exchange(std::vector<SendMessage> sends,
                                std::vector<ReceiveMessage> receives, const std::string& what,
                                const Stream& stream) {
  struct SelfSend {
    const std::byte* data;
    std::int64_t bytes;
  };
  struct SelfCopy {
    std::byte* to;
    const std::byte* from;
    std::int64_t bytes;
  };
  std::vector<detail::WireMessage> packed;  // these keep staging until everything is enqueued
  std::vector<detail::WireMessage> places, arrivals;
  std::vector<SelfSend> self_sends;
  std::vector<SelfCopy> self_copies;
  Group group(*core_);
  for (const SendMessage& message : sends) {
    core_->check_peer(message.peer, what);
    for (const SendPart& part : message.parts) {
      if (detail::wire_bytes(part, message.wire_dtype) == 0) continue;
      const detail::WireMessage& wire = packed.emplace_back(
          detail::host_copy(detail::pack(part, message.wire_dtype, stream), stream));
      if (message.peer == core_->rank) {
        self_sends.push_back({wire.data, wire.bytes});
      } else {
        group.send(message.peer, wire.data, wire.bytes);
        core_->exchanged_bytes[static_cast<std::size_t>(message.peer)] += wire.bytes;
      }
    }
  }
  std::size_t self_matched = 0;
  const auto lending = std::make_shared<detail::Lending>(core_->world_rank(core_->rank));
  for (const SendMessage& message : sends)
    lending->lend(core_->world_rank(message.peer), message.lent);
  for (const ReceiveMessage& message : receives) {
    core_->check_peer(message.peer, what);
    lending->borrow(core_->world_rank(message.peer), message.borrowed);
    for (const ReceivePart& part : message.parts) {
      places.push_back(detail::receive_place(part, message.wire_dtype, stream));
      const detail::WireMessage& place =
          arrivals.emplace_back(detail::host_place(places.back(), stream));
      if (message.peer != core_->rank) {
        group.receive(message.peer, place.data, place.bytes);
      } else if (place.bytes > 0) {
        const std::int64_t offered =
            self_matched < self_sends.size() ? self_sends[self_matched].bytes : 0;
        LONGHAUL_CHECK(offered == place.bytes, what, " receives ", place.bytes,
                       " bytes from itself, where ", offered, " are sent");
        self_copies.push_back({place.data, self_sends[self_matched++].data, place.bytes});
      }
    }
  }
  LONGHAUL_CHECK(self_matched == self_sends.size(), what, " sends ", self_sends.size(),
                 " parts to itself and receives ", self_matched);
  core_->sent_bytes += group.send_bytes();
  LONGHAUL_CHECK(lending->empty() || lends(), what, " lends over communicator '", core_->name,
                 "', whose ranks do not share memory");
  lending->check(what, stream);
  stream.host_task([core = core_, info = core_->next(what), self_copies, lending,
                    sends = std::move(group.sends),
                    receives = std::move(group.receives)]() mutable {
    for (const SelfCopy& copy : self_copies) copy_bytes(copy.to, copy.from, copy.bytes);
    lending->append(*core->transport, sends, receives);
    core->run(info, sends, receives);
    lending->arrive(*core->transport, info.what);
  });
  std::size_t i = 0;
  for (const ReceiveMessage& message : receives) {
    for (const ReceivePart& part : message.parts) {
      detail::arrive(arrivals[i], places[i], stream);
      detail::unpack(places[i].data, part, message.wire_dtype, stream);
      ++i;
    }
  }
}

std::int64_t HostCommunicator::reduce_staging_bytes(std::span<const std::int64_t> counts, int rank,
                                                    DType dtype) {
  if (counts[static_cast<std::size_t>(rank)] == 0) return 0;
  const std::int64_t chunk = reduce_chunk(counts, dtype);
  const std::int64_t buffers = *std::ranges::max_element(counts) > chunk ? 2 : 1;
  return buffers * chunk * size_bytes(dtype) * (std::ssize(counts) - 1);
}

std::int64_t HostCommunicator::all_reduce_staging_bytes(std::int64_t elements, int ranks,
                                                        DType dtype) {
  if (ranks == 1 || elements == 0) return 0;
  const auto counts = even_counts(elements, ranks);
  return reduce_staging_bytes(counts, ranks - 1, dtype);  // the last has the longest segment
}

void HostCommunicator::reduce_scatter(ConstTensorView input, TensorView output,
                                      std::span<const std::int64_t> counts, const Stream& stream) {
  core_->check_counts(counts, "reduce_scatter");
  check_sum_dtype(input.dtype(), "reduce_scatter");
  check_same_dtype(input, output, "reduce_scatter");
  const std::vector<std::int64_t> offsets = offsets_of(counts);
  const std::int64_t own = counts[static_cast<std::size_t>(core_->rank)];
  check_contiguous(input, offsets.back(), "reduce_scatter", "input", stream);
  check_contiguous(output, own, "reduce_scatter", "output", stream);
  const std::int64_t chunk = reduce_chunk(counts, input.dtype());
  const std::int64_t width = size_bytes(input.dtype());
  const Buffer staging =
      stream.allocate_host(reduce_staging_bytes(counts, core_->rank, input.dtype()));
  const detail::WireMessage from = detail::host_copy(detail::whole(input), stream);
  const detail::WireMessage place = detail::whole(output);
  const detail::WireMessage to = detail::host_place(place, stream);
  core_->sent_bytes += (offsets.back() - own) * width;
  stream.host_task(OrderedReduce{core_, core_->next("reduce_scatter"), input.dtype(), offsets,
                                 from.data, to.data, staging.data(), chunk});
  detail::arrive(to, place, stream);
}

void HostCommunicator::all_gather(ConstTensorView input, TensorView output,
                                  std::span<const std::int64_t> counts, const Stream& stream) {
  core_->check_counts(counts, "all_gather");
  check_same_dtype(input, output, "all_gather");
  const std::vector<std::int64_t> offsets = offsets_of(counts);
  check_contiguous(input, counts[static_cast<std::size_t>(core_->rank)], "all_gather", "input",
                   stream);
  check_contiguous(output, offsets.back(), "all_gather", "output", stream);
  const std::int64_t width = size_bytes(input.dtype());
  const detail::WireMessage from = detail::host_copy(detail::whole(input), stream);
  const detail::WireMessage place = detail::whole(output);
  const detail::WireMessage to = detail::host_place(place, stream);
  const auto segment = [&](int rank) {
    return to.data + offsets[static_cast<std::size_t>(rank)] * width;
  };
  Group group(*core_);
  for_each_peer(*core_, [&](int peer) {
    group.send(peer, from.data, from.bytes);
    group.receive(peer, segment(peer), counts[static_cast<std::size_t>(peer)] * width);
  });
  core_->sent_bytes += group.send_bytes();
  stream.host_task([core = core_, info = core_->next("all_gather"), own = segment(core_->rank),
                    own_from = from.data, bytes = from.bytes, sends = std::move(group.sends),
                    receives = std::move(group.receives)] {
    copy_bytes(own, own_from, bytes);
    core->run(info, sends, receives);
  });
  detail::arrive(to, place, stream);
}

void HostCommunicator::all_reduce(TensorView values, const Stream& stream) {
  check_sum_dtype(values.dtype(), "all_reduce");
  const std::int64_t elements = values.elements();
  check_contiguous(values, elements, "all_reduce", "tensor", stream);
  if (core_->size() == 1 || elements == 0) return;
  const std::vector<std::int64_t> counts = even_counts(elements, core_->size());
  const std::int64_t begin = offsets_of(counts)[static_cast<std::size_t>(core_->rank)];
  const TensorView flat = values.reshape({elements});
  const TensorView own =
      flat.slice(0, begin, begin + counts[static_cast<std::size_t>(core_->rank)]);
  // In place: a sum overwrites its own segment, which is never sent.
  reduce_scatter(flat, own, counts, stream);
  all_gather(own, flat, counts, stream);
}

/// On a device everything that moves does so through pinned memory.
MessageMemory HostCommunicator::memory_of(const GroupBytes& group, DeviceKind kind) const {
  const bool pinned = kind != DeviceKind::cpu;
  return {group.staged, pinned ? group.moved : 0, group.parts};
}

MessageMemory HostCommunicator::memory_of_segments(std::span<const std::int64_t> counts,
                                                   DType dtype, DeviceKind kind) const {
  const std::int64_t own = counts[static_cast<std::size_t>(core_->rank)],
                     all = std::reduce(counts.begin(), counts.end()),
                     pinned = kind == DeviceKind::cpu ? 0 : (own + all) * size_bytes(dtype);
  return {0, pinned + reduce_staging_bytes(counts, core_->rank, dtype), 3};
}

void HostCommunicator::barrier(const Stream& stream) {
  stream.host_task([core = core_, info = core_->next("barrier")] {
    // One byte from each rank: more messages than a tree, but a hang names exactly who is missing.
    const std::byte token{1};
    std::vector<std::byte> tokens(core->members.size());
    Group group(*core);
    for_each_peer(*core, [&](int peer) {
      group.send(peer, &token, 1);
      group.receive(peer, &tokens[static_cast<std::size_t>(peer)], 1);
    });
    core->run(info, group.sends, group.receives);
  });
}

std::unique_ptr<Communicator> HostCommunicator::split(int color, int key, const std::string& name) {
  struct Vote {
    std::int32_t color, key, next_context;
  };
  std::lock_guard lock(core_->contexts->mutex);
  std::vector<Vote> votes(core_->members.size());
  const Vote own{color, key, core_->contexts->next};
  votes[static_cast<std::size_t>(core_->rank)] = own;
  Group group(*core_);
  for_each_peer(*core_, [&](int peer) {
    group.send(peer, reinterpret_cast<const std::byte*>(&own), sizeof(Vote));
    group.receive(peer, reinterpret_cast<std::byte*>(&votes[static_cast<std::size_t>(peer)]),
                  sizeof(Vote));
  });
  ExchangeInfo info = core_->next("split into '" + name + "'");
  info.context = core_->context + 1;
  core_->run(info, group.sends, group.receives);

  auto child = std::make_shared<Core>();
  child->context = std::ranges::max(votes, {}, &Vote::next_context).next_context;
  core_->contexts->next = child->context + 2;
  std::vector<int> group_ranks;
  for (int rank = 0; rank < core_->size(); ++rank) {
    if (votes[static_cast<std::size_t>(rank)].color == color) group_ranks.push_back(rank);
  }
  std::ranges::stable_sort(group_ranks, {},
                           [&](int rank) { return votes[static_cast<std::size_t>(rank)].key; });
  child->rank = static_cast<int>(std::ranges::find(group_ranks, core_->rank) - group_ranks.begin());
  for (const int rank : group_ranks) child->members.push_back(core_->world_rank(rank));
  child->exchanged_bytes.resize(child->members.size());
  child->transport = core_->transport;
  child->contexts = core_->contexts;
  child->name = name;
  child->timeout_seconds = core_->timeout_seconds;
  child->recorder = core_->recorder;
  return std::make_unique<HostCommunicator>(std::move(child));
}

}  // namespace longhaul::runtime

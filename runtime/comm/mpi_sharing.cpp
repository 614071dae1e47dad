#include "runtime/comm/mpi_sharing_impl.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "runtime/cgroup.h"

namespace longhaul::runtime::detail {
namespace {

// Of the 2^47 that a process has, for its own arena and those it maps.
constexpr std::int64_t kMostAddresses = std::int64_t{1} << 45;

/// Words that travel.
using Reason = std::array<char, 256>;

Reason reason_of(const std::string& text) {
  Reason reason = {};
  std::strncpy(reason.data(), text.c_str(), reason.size() - 1);
  return reason;
}

/// What a rank says to those of its host.
struct Offer {
  int rank = 0;  ///< in the world
  ArenaAddress address = {};
  Reason refusal = {};  ///< why there is none; empty: there is
};
/// What a rank says to all once it has read the offers.
struct Verdict {
  int host = 0;         ///< its first rank
  Reason refusal = {};  ///< why it cannot read the others' memory; empty: it can
};

template <class T>
std::vector<T> gather(MPI_Comm comm, const T& own) {
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  std::vector<T> all(static_cast<std::size_t>(size));
  check_mpi(MPI_Allgather(&own, sizeof(T), MPI_BYTE, all.data(), sizeof(T), MPI_BYTE, comm),
            "MPI_Allgather");
  return all;
}

Offer make_offer(int rank, int local_ranks, bool wanted, std::unique_ptr<SharedArena>& arena) {
  Offer offer{rank};
  if (local_ranks == 1) return offer;
  if (!wanted) {
    offer.refusal = reason_of("it is told not to");
    return offer;
  }
  try {
    arena = std::make_unique<SharedArena>(std::min(
        node_memory_bytes(), kMostAddresses / SharedArena::kAddressesPerByte / local_ranks));
    offer.address = arena->address();
  } catch (const Error& error) {
    offer.refusal = reason_of(error.what());
  }
  return offer;
}

/// What the ranks of each host have come to, in words.
std::string text_of(const std::vector<Verdict>& verdicts) {
  std::set<int> hosts;
  for (std::size_t rank = 0; rank < verdicts.size(); ++rank) {
    hosts.insert(verdicts[rank].host);
    if (verdicts[rank].refusal.front() == 0) continue;
    return concat("none, MPI carries all messages: rank ", rank, ": ",
                  verdicts[rank].refusal.data());
  }
  if (verdicts.size() == 1) return "";
  if (hosts.size() == verdicts.size())
    return "none, MPI carries all messages: every rank has a host of its own";
  return hosts.size() == 1 ? "ranks may read each other's memory where it lies"
                           : "ranks of a host may read each other's memory where it lies";
}

}  // namespace

void check_mpi(int code, const char* call, ExitCode exit_code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  fail(exit_code, call, " failed with code ", code, ": ",
       std::string(text, static_cast<std::size_t>(length)));
}

MpiSharing::MpiSharing(MPI_Comm world, MPI_Comm host, bool wanted) {
  int local_ranks = 0;
  check_mpi(MPI_Comm_rank(world, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(host, &local_ranks), "MPI_Comm_size");
  std::unique_ptr<SharedArena> arena;
  const std::vector<Offer> offers = gather(host, make_offer(rank_, local_ranks, wanted, arena));
  const auto has_refused = [](const auto& words) { return words.refusal.front() != 0; };
  Verdict own{offers.front().rank};
  const auto refused = std::ranges::find_if(offers, has_refused);
  if (refused != offers.end()) {
    if (refused->rank == rank_) own.refusal = refused->refusal;
  } else if (local_ranks > 1) {
    try {
      for (const Offer& offer : offers) {
        if (offer.rank != rank_)
          peers_.emplace(offer.rank, std::make_unique<const PeerArena>(offer.address));
      }
    } catch (const Error& error) {
      own.refusal = reason_of(error.what());
    }
  }
  const std::vector<Verdict> verdicts = gather(world, own);
  text_ = text_of(verdicts);
  std::set<int> without;  // hosts
  for (const Verdict& verdict : verdicts) {
    if (has_refused(verdict)) without.insert(verdict.host);
  }
  for (const Verdict& verdict : verdicts)
    groups_.push_back(without.contains(verdict.host) ? -1 : verdict.host);
  if (groups_[static_cast<std::size_t>(rank_)] < 0) {
    peers_.clear();
  } else if (arena) {
    take_stream_memory_of(std::move(arena));
  }
}

bool MpiSharing::between(int one, int other) const {
  const int group = groups_[static_cast<std::size_t>(one)];
  return one == other || (group >= 0 && group == groups_[static_cast<std::size_t>(other)]);
}

SharedPlace MpiSharing::place_of(const std::byte* data) const {
  if (const SharedArena* arena = stream_memory_arena()) {
    if (const auto offset = arena->offset_of(data)) return {rank_, *offset};
  }
  for (const auto& [rank, arena] : peers_) {
    if (const auto offset = arena->offset_of(data)) return {rank, *offset};
  }
  fail(ExitCode::internal,
       "memory is lent that is neither of a CPU stream made since the ranks share memory nor "
       "borrowed");
}

const std::byte* MpiSharing::at(const SharedPlace& place) const {
  const SharedArena* own = stream_memory_arena();
  if (place.owner == rank_ && own != nullptr) return own->at(place.offset);
  const auto peer = peers_.find(static_cast<int>(place.owner));
  LONGHAUL_CHECK(peer != peers_.end(), "memory of rank ", place.owner,
                 " is borrowed, which this rank does not share");
  return peer->second->at(place.offset);
}

}  // namespace longhaul::runtime::detail

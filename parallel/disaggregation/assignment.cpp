// The books of an assignment.

#include "parallel/disaggregation/assignment.h"

#include <algorithm>
#include <array>

namespace longhaul::parallel {
namespace {

/// At most N things; those of a move.
template <class Thing, std::size_t N>
struct Few {
  std::array<Thing, N> items = {};
  std::size_t count = 0;
  void push(const Thing& thing) { items[count++] = thing; }
  const Thing* begin() const { return items.data(); }
  const Thing* end() const { return items.data() + count; }
};

template <class Value>
void insert_sorted(std::vector<Value>& values, Value value) {
  values.insert(std::ranges::lower_bound(values, value), value);
}
template <class Value>
void erase_sorted(std::vector<Value>& values, Value value) {
  values.erase(std::ranges::lower_bound(values, value));
}

}  // namespace

struct Assignment::Exchange {
  Few<Piece, 3> removed, added;
  int from = 0;
};

Assignment::Assignment(const TaskInputs& inputs, std::vector<Segment> segments,
                       const RowBytes& prices)
    : bytes_(inputs.bytes),
      prices_(prices),
      limit_(inputs.servers.buffer_bytes),
      external_(inputs.servers.mode == ServerMode::external),
      segments_(std::move(segments)) {
  const int servers = server_count(inputs.layout, inputs.servers), ranks = inputs.layout.ranks();
  for (int server = 0; server < servers; ++server) {
    places_.push_back(external_ ? ranks + server
                                : server_rank(inputs.layout, inputs.servers, server));
  }
  loads_.resize(places_.size());
  work_.resize(places_.size());
  dispatched_.resize(static_cast<std::size_t>(external_ ? ranks + servers : ranks));
  returned_.resize(dispatched_.size());
  presences_.resize(inputs.documents.size());
  for (std::size_t s = 0; s < segments_.size(); ++s)
    at(segments_[s].document, segments_[s].home).own.push_back(static_cast<int>(s));
  for (std::size_t s = 0; s < segments_.size(); ++s) {
    for (const Piece& piece : segments_[s].pieces) {
      const auto server = static_cast<std::size_t>(piece.server);
      loads_[server] += piece.area();
      if (work_[server].empty() || work_[server].back() != static_cast<int>(s))
        work_[server].push_back(static_cast<int>(s));
      at(segments_[s].document, external_ ? segments_[s].home : place(piece.server))
          .ends.push_back(piece.end);
    }
  }
  for (std::vector<Presence>& document : presences_) {
    for (const Presence& presence : document) {
      if (!presence.ends.empty()) {
        dispatched_[static_cast<std::size_t>(presence.place)] +=
            bytes_.key * sent_keys(&presence, presence.ends.back());
      }
    }
  }
  for (const Segment& segment : segments_) {
    for (const Piece& piece : segment.pieces) account(segment, piece, 1);
  }
}

const Assignment::Presence* Assignment::find(int document, int place) const {
  const auto& all = presences_[static_cast<std::size_t>(document)];
  const auto found = std::ranges::lower_bound(all, place, {}, &Presence::place);
  return found == all.end() || found->place != place ? nullptr : &*found;
}

Assignment::Presence& Assignment::at(int document, int place) {
  auto& all = presences_[static_cast<std::size_t>(document)];
  const auto found = std::ranges::lower_bound(all, place, {}, &Presence::place);
  if (found != all.end() && found->place == place) return *found;
  return *all.insert(found, {place});
}

std::vector<Assignment::Holder> Assignment::holders(int document) const {
  std::vector<Holder> holders;
  if (external_) return holders;
  for (const Presence& presence : presences_[static_cast<std::size_t>(document)]) {
    const int server = presence.place - places_[0];
    if (presence.ends.empty() || server < 0 || server >= servers()) continue;
    holders.push_back({server, presence.ends.back()});
  }
  return holders;
}

std::int64_t Assignment::prefix(int document, int server) const {
  if (external_) return 0;
  const Presence* presence = find(document, place(server));
  return presence == nullptr || presence->ends.empty() ? 0 : presence->ends.back();
}

std::int64_t Assignment::own_rows(const Presence* presence, std::int64_t row) const {
  std::int64_t rows = 0;
  if (presence == nullptr) return rows;
  for (const int s : presence->own) {
    const Segment& own = segment(s);
    if (own.begin >= row) break;
    rows += std::min(own.end, row) - own.begin;
  }
  return rows;
}

/// Of queries, results and gradients of keys; keys that an external server is sent, too. Not the
/// keys that a rank receives once for all of its tasks.
std::int64_t Assignment::task_price(const Segment& segment, const Piece& task) const {
  const std::int64_t rows = task.end - task.begin, there = prices_.query + prices_.result;
  if (external_) {
    const std::int64_t home = own_rows(segment.document, segment.home, task.end);
    return rows * there + (prices_.key + prices_.key_gradient) * task.end +
           prices_.key_gradient * (task.end - home);
  }
  std::int64_t price = at_home(segment, task.server) ? 0 : rows * there;
  if (prices_.key_gradient != 0) {
    const std::int64_t own = own_rows(segment.document, place(task.server), task.end);
    price += prices_.key_gradient * (task.end - own);
  }
  return price;
}

/// What the dispatch of a task brings its server, besides keys that come once for all its tasks.
std::int64_t Assignment::dispatched_bytes(const Segment& segment, const Piece& task) const {
  const std::int64_t rows = at_home(segment, task.server) ? 0 : task.end - task.begin;
  return bytes_.query * rows + (external_ ? bytes_.key * task.end : 0);
}

/// What the return of a task brings a rank.
std::int64_t Assignment::returned_bytes(const Segment& segment, const Piece& task, int rank) const {
  std::int64_t bytes = 0;
  if (rank == place(task.server)) return bytes;
  if (rank == segment.home) bytes += bytes_.result * (task.end - task.begin);
  if (bytes_.key_gradient == 0) return bytes;
  const std::int64_t keys =
      external_ && rank == segment.home ? task.end : own_rows(segment.document, rank, task.end);
  return bytes + bytes_.key_gradient * keys;
}

void Assignment::account(const Segment& segment, const Piece& task, std::int64_t sign) {
  dispatched_[static_cast<std::size_t>(place(task.server))] +=
      sign * dispatched_bytes(segment, task);
  if (bytes_.key_gradient == 0) {
    returned_[static_cast<std::size_t>(segment.home)] +=
        sign * returned_bytes(segment, task, segment.home);
    return;
  }
  for (const Presence& presence : presences_[static_cast<std::size_t>(segment.document)]) {
    if (!presence.own.empty()) {
      returned_[static_cast<std::size_t>(presence.place)] +=
          sign * returned_bytes(segment, task, presence.place);
    }
  }
}

Assignment::Exchange Assignment::exchange(const Move& move) const {
  const std::vector<Piece>& pieces = segment(move.segment).pieces;
  const auto index = static_cast<std::size_t>(move.piece);
  const Piece& piece = pieces[index];
  Exchange result;
  result.from = piece.server;
  result.removed.push(piece);
  if (piece.begin < move.begin) result.added.push({piece.begin, move.begin, piece.server});
  Piece moved{move.begin, move.end, move.to};
  if (moved.begin == piece.begin && index > 0 && pieces[index - 1].server == move.to) {
    moved.begin = pieces[index - 1].begin;
    result.removed.push(pieces[index - 1]);
  }
  if (moved.end == piece.end && index + 1 < pieces.size() && pieces[index + 1].server == move.to) {
    moved.end = pieces[index + 1].end;
    result.removed.push(pieces[index + 1]);
  }
  result.added.push(moved);
  if (move.end < piece.end) result.added.push({move.end, piece.end, piece.server});
  return result;
}

namespace {
const std::vector<std::int64_t> kNoEnds;
/// The last end of a server's tasks, those of a move exchanged.
std::int64_t last_end(const std::vector<std::int64_t>& ends, int server, const auto& exchange) {
  std::int64_t last = 0;
  for (auto end = ends.rbegin(); end != ends.rend() && last == 0; ++end) {
    const bool gone = std::ranges::any_of(exchange.removed, [&](const Piece& piece) {
      return piece.server == server && piece.end == *end;
    });
    if (!gone) last = *end;
  }
  for (const Piece& piece : exchange.added) {
    if (piece.server == server) last = std::max(last, piece.end);
  }
  return last;
}
}  // namespace

std::int64_t Assignment::more_keys(const Segment& segment, const Exchange& exchanged,
                                   int server) const {
  if (external_) return 0;
  const Presence* presence = find(segment.document, place(server));
  const std::vector<std::int64_t>& ends = presence == nullptr ? kNoEnds : presence->ends;
  const std::int64_t before = ends.empty() ? 0 : ends.back(),
                     after = last_end(ends, server, exchanged);
  return before == after ? 0 : sent_keys(presence, after) - sent_keys(presence, before);
}

std::int64_t Assignment::arriving(const Segment& segment, const Exchange& exchanged,
                                  int server) const {
  std::int64_t bytes = bytes_.key * more_keys(segment, exchanged, server);
  for (const Piece& task : exchanged.removed) {
    if (task.server == server) bytes -= dispatched_bytes(segment, task);
  }
  for (const Piece& task : exchanged.added) {
    if (task.server == server) bytes += dispatched_bytes(segment, task);
  }
  return bytes;
}

std::int64_t Assignment::price_of(const Move& move) const {
  const Segment& moved = segment(move.segment);
  const Exchange exchanged = exchange(move);
  std::int64_t price = prices_.key * (more_keys(moved, exchanged, exchanged.from) +
                                      more_keys(moved, exchanged, move.to));
  for (const Piece& piece : exchanged.removed) price -= task_price(moved, piece);
  for (const Piece& piece : exchanged.added) price += task_price(moved, piece);
  return price;
}

std::int64_t Assignment::relief(const Move& move) const {
  const Exchange exchanged = exchange(move);
  return -arriving(segment(move.segment), exchanged, exchanged.from);
}

bool Assignment::overflows(const Move& move) const {
  if (limit_ == std::numeric_limits<std::int64_t>::max()) return false;
  const Segment& moved = segment(move.segment);
  const Exchange exchanged = exchange(move);
  const auto above = [&](std::int64_t before, std::int64_t more) {
    return more > 0 && before + more > limit_;
  };
  if (above(dispatched(move.to), arriving(moved, exchanged, move.to))) return true;
  const auto returned_above = [&](int rank) {
    std::int64_t more = 0;
    for (const Piece& task : exchanged.removed) more -= returned_bytes(moved, task, rank);
    for (const Piece& task : exchanged.added) more += returned_bytes(moved, task, rank);
    return above(returned_[static_cast<std::size_t>(rank)], more);
  };
  if (bytes_.key_gradient == 0) return returned_above(moved.home);
  return std::ranges::any_of(presences_[static_cast<std::size_t>(moved.document)],
                             [&](const Presence& presence) {
                               return !presence.own.empty() && returned_above(presence.place);
                             });
}

std::int64_t Assignment::receivers(const Move& move) const {
  if (bytes_.key_gradient == 0) return 2;
  return 2 + std::ssize(presences_[static_cast<std::size_t>(segment(move.segment).document)]);
}

Received Assignment::most_of(const std::vector<std::int64_t>& received, bool dispatch) {
  const auto most = std::ranges::max_element(received);
  return {static_cast<int>(most - received.begin()), *most, dispatch};
}

Received Assignment::most_received() const {
  const Received there = most_dispatched(), back = most_of(returned_, false);
  return there.bytes >= back.bytes ? there : back;
}

void Assignment::apply(const Move& move) {
  Segment& moved = segments_[static_cast<std::size_t>(move.segment)];
  const Exchange exchanged = exchange(move);
  if (!external_) at(moved.document, place(move.to));  // before pointers to presences are taken
  const auto keys = [&](int server, std::int64_t sign) {
    if (external_) return;
    const Presence& presence = at(moved.document, place(server));
    if (presence.ends.empty()) return;
    dispatched_[static_cast<std::size_t>(presence.place)] +=
        sign * bytes_.key * sent_keys(&presence, presence.ends.back());
  };
  keys(exchanged.from, -1);
  keys(move.to, -1);
  for (const Piece& task : exchanged.removed) {
    account(moved, task, -1);
    if (!external_) erase_sorted(at(moved.document, place(task.server)).ends, task.end);
  }
  for (const Piece& task : exchanged.added) {
    account(moved, task, 1);
    if (!external_) insert_sorted(at(moved.document, place(task.server)).ends, task.end);
  }
  keys(exchanged.from, 1);
  keys(move.to, 1);

  std::int64_t first = moved.end;
  for (const Piece& piece : exchanged.removed) first = std::min(first, piece.begin);
  auto& pieces = moved.pieces;
  const auto place_in = std::ranges::lower_bound(pieces, first, {}, &Piece::begin);
  const auto rest =
      pieces.erase(place_in, place_in + static_cast<std::ptrdiff_t>(exchanged.removed.count));
  pieces.insert(rest, exchanged.added.begin(), exchanged.added.end());

  const std::int64_t area = causal_area(move.begin, move.end);
  loads_[static_cast<std::size_t>(exchanged.from)] -= area;
  loads_[static_cast<std::size_t>(move.to)] += area;
  const auto does = [&](int server) {
    return std::ranges::any_of(pieces, [&](const Piece& p) { return p.server == server; });
  };
  std::vector<int>& giver = work_[static_cast<std::size_t>(exchanged.from)];
  std::vector<int>& taker = work_[static_cast<std::size_t>(move.to)];
  if (!does(exchanged.from)) erase_sorted(giver, move.segment);
  if (!std::ranges::binary_search(taker, move.segment)) insert_sorted(taker, move.segment);
}

}  // namespace longhaul::parallel

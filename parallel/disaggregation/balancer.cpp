// The search for moves: the most work per byte first.

#include "parallel/disaggregation/balancer.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace longhaul::parallel {
namespace {

using Wide = __int128;

constexpr std::int64_t kUnit = 1 << 20;     // of tolerances
constexpr double kMostTolerance = 1 << 20;  // one server may do all work of as many
constexpr std::size_t kOffers = 12;         // pieces of a donor that are tried, those that see most
constexpr std::size_t kIdle = 2;            // servers with most room that are tried

constexpr std::size_t kAll = std::numeric_limits<std::size_t>::max();

std::size_t index(int i) { return static_cast<std::size_t>(i); }

}  // namespace

Balancer::Balancer(const TaskInputs& inputs, const RowBytes& prices, Assignment& work,
                   const Bounds& bounds)
    : work_(work),
      speeds_(speeds_of(inputs)),
      alike_(std::ranges::all_of(speeds_, [&](auto speed) { return speed == speeds_[0]; })),
      stuck_(speeds_.size()),
      query_(prices.query + prices.result),
      key_(prices.key + prices.key_gradient),
      limit_(inputs.servers.buffer_bytes),
      bounds_(bounds) {
  Wide area = 0, speed = 0;
  for (int server = 0; server < work.servers(); ++server) {
    area += work.load(server);
    speed += speeds_[index(server)];
  }
  const auto tolerance = static_cast<std::int64_t>(std::min(inputs.tolerance, kMostTolerance) *
                                                   static_cast<double>(kUnit));
  for (const std::int64_t own : speeds_) {
    const Wide cap = area * own / speed * (kUnit + tolerance) / kUnit;
    caps_.push_back(static_cast<std::int64_t>(std::min(area, cap)));
  }
}

std::int64_t Balancer::room(int server) const { return caps_[index(server)] - work_.load(server); }

int Balancer::most_loaded() const {
  int donor = -1;
  for (int server = 0; server < work_.servers(); ++server) {
    if (stuck_[index(server)] || room(server) >= 0) continue;
    if (donor < 0 || less_ratio(work_.load(donor), speeds_[index(donor)], work_.load(server),
                                speeds_[index(server)]))
      donor = server;
  }
  return donor;
}

bool Balancer::within_tolerance() const {
  for (int server = 0; server < work_.servers(); ++server) {
    if (room(server) < 0) return false;
  }
  return true;
}

Load Balancer::largest_load() const {
  Load largest;
  for (int server = 0; server < work_.servers(); ++server) {
    const Load load{work_.load(server), speeds_[index(server)]};
    if (less_ratio(largest.area, largest.speed, load.area, load.speed)) largest = load;
  }
  return largest;
}

bool Balancer::fits(const Move& move) {
  steps_ += work_.receivers(move);
  return !work_.overflows(move);
}

void Balancer::relieve() {
  std::vector<int> all(speeds_.size());
  std::iota(all.begin(), all.end(), 0);
  while (!spent()) {
    const Received most = work_.most_dispatched();
    if (most.bytes <= limit_) return;
    int donor = 0;
    while (donor < work_.servers() && work_.place(donor) != most.place) ++donor;
    if (donor == work_.servers()) return;  // a rank that gathers keys for external servers
    std::optional<Move> best;
    std::int64_t least = 0;
    const std::vector<int> roomy = with_buffers(all);
    for (const Offer& offer : offers(donor, kAll)) {
      const Segment& segment = work_.segment(offer.segment);
      const Piece& piece = segment.pieces[index(offer.piece)];
      Move move{offer.segment, offer.piece, piece.begin, piece.end, 0};
      const auto look = [&](int to) {
        move.to = to;
        ++steps_;
        if (to == donor || spent()) return;
        const std::int64_t price = work_.price_of(move);
        if ((best && price >= least) || work_.relief(move) <= 0 || !fits(move)) return;
        best = move;
        least = price;
      };
      for (const int to : roomy) look(to);
      for (const auto& holder : work_.holders(segment.document)) look(holder.server);
    }
    if (!best) return;
    work_.apply(*best);
  }
}

void Balancer::balance() {
  for (int donor = most_loaded(); donor >= 0 && !spent(); donor = most_loaded()) {
    std::vector<int> takers = idle(kIdle);
    std::optional<Move> move = best_move(donor, kOffers, takers);
    if (!move && blocked_) takers = with_buffers(idle(kAll));
    if (!move) move = best_move(donor, kAll, takers);
    if (!move) move = smallest_step(donor);
    if (move) {
      work_.apply(*move);
    } else if (blocked_ && less_ratio(bounds_.load.area, bounds_.load.speed, work_.load(donor),
                                      speeds_[index(donor)])) {
      return;
    } else {
      stuck_[index(donor)] = true;
    }
    blocked_ = false;
  }
}

/// Of some servers those that receive least in the dispatch, as many as are tried.
std::vector<int> Balancer::with_buffers(std::vector<int> servers) const {
  if (servers.size() <= bounds_.takers) return servers;
  const auto last = servers.begin() + static_cast<std::ptrdiff_t>(bounds_.takers);
  std::ranges::partial_sort(servers, last, [&](int a, int b) {
    const std::int64_t at_a = work_.dispatched(a), at_b = work_.dispatched(b);
    return at_a != at_b ? at_a < at_b : a < b;
  });
  servers.erase(last, servers.end());
  return servers;
}

std::vector<Balancer::Offer> Balancer::offers(int donor, std::size_t most) {
  std::vector<Offer> found;
  for (const int s : work_.work_of(donor)) {
    const std::vector<Piece>& pieces = work_.segment(s).pieces;
    for (std::size_t p = 0; p < pieces.size(); ++p) {
      if (pieces[p].server == donor) found.push_back({s, static_cast<int>(p), pieces[p].end});
    }
  }
  steps_ += std::ssize(found);
  const auto last = found.begin() + static_cast<std::ptrdiff_t>(std::min(most, found.size()));
  std::ranges::partial_sort(found, last, [](const Offer& a, const Offer& b) {
    if (a.end != b.end) return a.end > b.end;
    return a.segment != b.segment ? a.segment < b.segment : a.piece < b.piece;
  });
  found.erase(last, found.end());
  return found;
}

std::vector<int> Balancer::idle(std::size_t most) const {
  std::vector<int> found;
  for (int server = 0; server < work_.servers(); ++server) {
    if (room(server) > 0) found.push_back(server);
  }
  const auto last = found.begin() + static_cast<std::ptrdiff_t>(std::min(most, found.size()));
  std::ranges::partial_sort(
      found, last, [&](int a, int b) { return room(a) != room(b) ? room(a) > room(b) : a < b; });
  found.erase(last, found.end());
  return found;
}

std::optional<Move> Balancer::best_move(int donor, std::size_t pieces,
                                        const std::vector<int>& takers) {
  Best best;
  for (const Offer& offer : offers(donor, pieces)) {
    if (spent()) break;
    const int document = work_.segment(offer.segment).document;
    for (const int to : takers) try_on(best, donor, offer, to, work_.prefix(document, to));
    for (const auto& holder : work_.holders(document)) {
      if (holder.server != donor && room(holder.server) > 0)
        try_on(best, donor, offer, holder.server, holder.prefix);
    }
  }
  return best.move;
}

/// Where rows of so much area end that cost the fewest bytes at a server without any keys. Rows
/// [s, e) have (e^2 - s^2) / 2 pairs and cost query (e - s) + key e: least where
/// s (query + key) = e query (DistCA, appendix B).
std::int64_t Balancer::best_end(std::int64_t area, std::int64_t most) const {
  const Wide scale = static_cast<Wide>(key_) * (2 * query_ + key_), both = query_ + key_;
  if (scale == 0) return most;
  const Wide square = 2 * area * both / scale * both;
  if (square >= static_cast<Wide>(most) * most) return most;
  return floor_root(static_cast<std::int64_t>(square));
}

/// As much of a piece as the donor has too much, or the server has room for; less where a buffer is
/// too small for that.
void Balancer::try_on(Best& best, int donor, const Offer& offer, int to, std::int64_t prefix) {
  const std::int64_t area = work_.segment(offer.segment).pieces[index(offer.piece)].area();
  for (std::int64_t wanted = std::min(-room(donor), room(to)); wanted > 0;
       wanted = std::min(wanted, area) / 2) {
    bool fits = consider(best, donor, offer, to, offer.end, wanted);
    if (0 < prefix && prefix < offer.end)
      fits = consider(best, donor, offer, to, prefix, wanted) || fits;
    const std::int64_t end = best_end(wanted, offer.end);
    if (end < offer.end) fits = consider(best, donor, offer, to, end, wanted) || fits;
    if (fits) return;
  }
}

/// Rows of the piece that end at `end` or the next cut. False where a buffer is too small.
bool Balancer::consider(Best& best, int donor, const Offer& offer, int to, std::int64_t end,
                        std::int64_t wanted) {
  ++steps_;
  const Segment& segment = work_.segment(offer.segment);
  const Piece& piece = segment.pieces[index(offer.piece)];
  end = std::min(piece.end, segment.cut_above(std::max(end, piece.begin + 1)));
  std::int64_t begin = std::max(piece.begin, last_row_with(end, wanted));
  begin = segment.cut_below(begin);
  if (causal_area(begin, end) > room(to)) begin = segment.cut_above(begin + 1);
  if (begin >= end || causal_area(begin, end) > room(to)) return true;
  const Move move{offer.segment, offer.piece, begin, end, to};
  const std::int64_t area = std::min(causal_area(begin, end), -room(donor)),
                     bytes = work_.price_of(move);
  const bool free = bytes <= 0, best_free = best.bytes <= 0;
  const bool better = !best.move          ? true
                      : free != best_free ? free
                      : free              ? bytes < best.bytes
                                          : less_ratio(best.area, best.bytes, area, bytes);
  if (!better) return true;
  if (!fits(move)) {
    blocked_ = true;
    return false;
  }
  best = {move, area, bytes};
  return true;
}

/// Where no server has room for a shard: the last tile of the piece that leaves the least load on
/// the busier of two, the donor and the least loaded server that may have it.
std::optional<Move> Balancer::smallest_step(int donor) {
  std::optional<Move> best;
  std::vector<int> order(speeds_.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) {
    return less_ratio(work_.load(a), speeds_[index(a)], work_.load(b), speeds_[index(b)]);
  });
  std::int64_t load = work_.load(donor), speed = speeds_[index(donor)];
  for (const Offer& offer : offers(donor, kAll)) {
    if (spent()) break;
    const Segment& segment = work_.segment(offer.segment);
    const Piece& piece = segment.pieces[index(offer.piece)];
    Move move{offer.segment, offer.piece, segment.cut_below(piece.end - 1), piece.end, 0};
    const std::int64_t area = causal_area(move.begin, move.end);
    for (const int to : order) {
      if (to == donor || spent()) break;  // behind the donor others are as loaded
      ++steps_;
      std::int64_t busier = work_.load(donor) - area, its_speed = speeds_[index(donor)];
      const std::int64_t there = work_.load(to) + area;
      if (less_ratio(busier, its_speed, there, speeds_[index(to)])) {
        busier = there;
        its_speed = speeds_[index(to)];
      }
      if (!less_ratio(busier, its_speed, load, speed)) {
        if (alike_) break;
        continue;
      }
      move.to = to;
      if (!fits(move)) {
        blocked_ = true;
        continue;
      }
      load = busier;
      speed = its_speed;
      best = move;
      break;
    }
  }
  return best;
}

}  // namespace longhaul::parallel

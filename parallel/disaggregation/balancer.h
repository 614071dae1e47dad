#pragma once
// Rows move from servers above the tolerated load to others; internal to the planner.

#include <optional>
#include <vector>

#include "parallel/disaggregation/assignment.h"

namespace longhaul::parallel {

class Balancer {
 public:
  /// `prices` are the assignment's.
  Balancer(const TaskInputs& inputs, const RowBytes& prices, Assignment& work);

  /// Whole pieces leave servers whose buffers are too small for what the dispatch brings them, as
  /// long as others may have them.
  void relieve();
  /// Until no server is above its cap, or nothing that fits would lower the largest load.
  void balance();
  /// A server that stayed above its cap because of the limit of a buffer.
  struct Blocked {
    int server = 0;
    Overflow overflow = {};
  };
  const std::optional<Blocked>& blocked() const { return blocked_; }

 private:
  /// A piece of the donor's.
  struct Offer {
    int segment = 0, piece = 0;
    std::int64_t end = 0;
  };
  struct Best {
    std::optional<Move> move;
    std::int64_t area = 0, bytes = 0;
  };

  std::int64_t room(int server) const;
  int most_loaded() const;
  std::vector<Offer> offers(int donor, std::size_t most);
  std::vector<int> idle(std::size_t most) const;
  std::optional<Move> best_move(int donor, std::size_t pieces, std::size_t servers);
  void try_on(Best& best, int donor, const Offer& offer, int to, std::int64_t prefix);
  bool consider(Best& best, int donor, const Offer& offer, int to, std::int64_t end,
                std::int64_t wanted);
  std::optional<Move> smallest_step(int donor);
  std::int64_t best_end(std::int64_t area, std::int64_t most) const;

  Assignment& work_;
  std::vector<std::int64_t> speeds_, caps_;
  bool alike_;                // all as fast as each other
  std::vector<bool> stuck_;   // nothing that a server gives would lower the largest load
  std::int64_t query_, key_;  // bytes of a row that moves, and of a key that its server lacks
  std::optional<Blocked> blocked_;
};

}  // namespace longhaul::parallel

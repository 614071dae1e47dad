#pragma once
// Rows move from servers above the tolerated load to others; internal to the planner.

#include <limits>
#include <optional>
#include <vector>

#include "parallel/disaggregation/assignment.h"

namespace longhaul::parallel {

/// Work of a server, to compare with others'.
struct Load {
  std::int64_t area = 0, speed = 1;
};

class Balancer {
 public:
  /// What a search under limits of buffers may take, and need not be better than: work in steps, so
  /// that it is the same everywhere, and a load that is good enough though above the tolerance.
  struct Bounds {
    std::int64_t steps = std::numeric_limits<std::int64_t>::max();
    Load load = {};
    std::size_t takers = 0;  ///< that are tried where buffers are full: those that receive least
  };
  /// `prices` are the assignment's.
  Balancer(const TaskInputs& inputs, const RowBytes& prices, Assignment& work,
           const Bounds& bounds);

  /// Whole pieces leave servers whose buffers are too small for what the dispatch brings them, as
  /// long as others may have them.
  void relieve();
  /// Until no server is above its cap, or nothing that fits would lower the largest load, or all
  /// steps are taken.
  void balance();
  /// No server is above its cap.
  bool within_tolerance() const;
  Load largest_load() const;
  /// Steps taken: moves looked at, receivers of a move, and pieces that were listed.
  std::int64_t steps() const { return steps_; }

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
  bool spent() const { return steps_ >= bounds_.steps; }
  bool fits(const Move& move);
  std::vector<Offer> offers(int donor, std::size_t most);
  std::vector<int> idle(std::size_t most) const;
  std::vector<int> with_buffers(std::vector<int> servers) const;
  std::optional<Move> best_move(int donor, std::size_t pieces, const std::vector<int>& takers);
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
  std::int64_t limit_;        // of what a buffer holds
  bool blocked_ = false;      // a buffer was too small for a move that was looked at
  Bounds bounds_;
  std::int64_t steps_ = 0;
};

}  // namespace longhaul::parallel

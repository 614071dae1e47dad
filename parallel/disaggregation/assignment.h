#pragma once
// Which server does which rows, with the loads and bytes that follow, kept up while the planner
// moves rows about; internal to the planner.

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/disaggregation/segments.h"

namespace longhaul::parallel {

/// Rows [begin, end) of a piece, given to another server.
struct Move {
  int segment = 0, piece = 0;
  std::int64_t begin = 0, end = 0;
  int to = 0;
};

/// What a place receives in one exchange.
struct Received {
  int place = 0;  ///< rank, or ranks + external server
  std::int64_t bytes = 0;
  bool dispatch = true;  ///< else in the return
};

class Assignment {
 public:
  /// `prices` stand for the bytes where moves are compared; limits are held to the bytes.
  Assignment(const TaskInputs& inputs, std::vector<Segment> segments, const RowBytes& prices);

  int servers() const { return static_cast<int>(loads_.size()); }
  std::int64_t load(int server) const { return loads_[static_cast<std::size_t>(server)]; }
  const Segment& segment(int index) const { return segments_[static_cast<std::size_t>(index)]; }
  std::span<const Segment> segments() const { return segments_; }
  /// Indices of the segments of which a server does a part, rising.
  const std::vector<int>& work_of(int server) const {
    return work_[static_cast<std::size_t>(server)];
  }
  /// Servers that do rows of a document, and thus have its keys [0, prefix).
  struct Holder {
    int server = 0;
    std::int64_t prefix = 0;
  };
  std::vector<Holder> holders(int document) const;
  /// Keys [0, n) of a document that a server has, or receives, for its tasks.
  std::int64_t prefix(int document, int server) const;
  bool at_home(const Segment& segment, int server) const { return place(server) == segment.home; }

  /// By how much a move changes the bytes of both exchanges, of all ranks together, at the prices.
  std::int64_t price_of(const Move& move) const;
  /// Dispatched bytes that its giver no more receives.
  std::int64_t relief(const Move& move) const;
  /// Whether a move gives a receiver more, and more than the limit.
  bool overflows(const Move& move) const;
  /// How many receivers that takes to see, at most.
  std::int64_t receivers(const Move& move) const;
  /// The receiver of most bytes: in the dispatch, and in either exchange.
  Received most_dispatched() const { return most_of(dispatched_, true); }
  Received most_received() const;
  std::int64_t dispatched(int server) const {
    return dispatched_[static_cast<std::size_t>(place(server))];
  }
  void apply(const Move& move);

  /// The place of a server: its rank, or ranks + the number of an external one.
  int place(int server) const { return places_[static_cast<std::size_t>(server)]; }

 private:
  /// What a place has of a document.
  struct Presence {
    int place = 0;
    std::vector<int> own = {};            ///< segments whose home it is
    std::vector<std::int64_t> ends = {};  ///< of the tasks that it does, rising
  };
  /// The tasks that a move replaces by others.
  struct Exchange;
  Exchange exchange(const Move& move) const;

  const Presence* find(int document, int place) const;
  Presence& at(int document, int place);
  std::int64_t own_rows(const Presence* presence, std::int64_t row) const;
  std::int64_t own_rows(int document, int place, std::int64_t row) const {
    return own_rows(find(document, place), row);
  }
  /// Keys that a place is sent for tasks of which the last ends at `prefix`.
  std::int64_t sent_keys(const Presence* presence, std::int64_t prefix) const {
    return prefix - own_rows(presence, prefix);
  }
  /// How many more of them a server is sent by a move, and bytes of its dispatch in all.
  std::int64_t more_keys(const Segment& segment, const Exchange& exchanged, int server) const;
  std::int64_t arriving(const Segment& segment, const Exchange& exchanged, int server) const;
  std::int64_t task_price(const Segment& segment, const Piece& task) const;
  std::int64_t dispatched_bytes(const Segment& segment, const Piece& task) const;
  std::int64_t returned_bytes(const Segment& segment, const Piece& task, int rank) const;
  void account(const Segment& segment, const Piece& task, std::int64_t sign);
  static Received most_of(const std::vector<std::int64_t>& received, bool dispatch);

  RowBytes bytes_, prices_;
  std::int64_t limit_;
  bool external_;
  std::vector<Segment> segments_;
  std::vector<std::vector<Presence>> presences_;  // by document; by place
  std::vector<int> places_;
  std::vector<std::int64_t> loads_;
  std::vector<std::int64_t> dispatched_, returned_;  // bytes that a place receives
  std::vector<std::vector<int>> work_;
};

}  // namespace longhaul::parallel

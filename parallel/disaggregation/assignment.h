#pragma once
// Which server does which rows, with the loads and bytes that follow, kept up while the planner
// moves rows about; internal to the planner.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "parallel/disaggregation/rows.h"
#include "parallel/disaggregation/tasks.h"

namespace longhaul::parallel {

/// Rows of a segment that one server does: a task. In rows of the document, as all rows here.
struct Piece {
  std::int64_t begin = 0, end = 0;
  int server = 0;
  std::int64_t area() const { return causal_area(begin, end); }
};

/// The part of a home's run that lies in one document.
struct Segment {
  int document = 0;
  std::int64_t begin = 0, end = 0;
  int home = 0;                    ///< rank
  std::vector<Piece> pieces = {};  ///< all rows in order; neighbours have different servers

  /// The last cut at or before a row, and the first at or behind it.
  std::int64_t cut_below(std::int64_t row) const {
    return row >= end ? end : row - (row - begin) % kShardRows;
  }
  std::int64_t cut_above(std::int64_t row) const {
    return std::min(end, cut_below(row + kShardRows - 1));
  }
};

/// Segments by document and row, each one piece: of its home where that is a server, else of
/// server -1. Throws Error(config) over a layout whose runs are not of consecutive tokens.
std::vector<Segment> segments_of(const TaskInputs& inputs);

/// Gives rows that no server has to servers, documents whole where they fit: the longest first,
/// each to the server that is then least loaded. What is longer than a server's share is cut.
void deal(std::vector<Segment>& segments, const TaskInputs& inputs);

/// Work a second of each server; 1 where none is given.
std::vector<std::int64_t> speeds_of(const TaskInputs& inputs);

/// Rows [begin, end) of a piece, given to another server.
struct Move {
  int segment = 0, piece = 0;
  std::int64_t begin = 0, end = 0;
  int to = 0;
};

/// What a place would receive above the limit.
struct Overflow {
  int place = 0;  ///< rank, or ranks + external server
  std::int64_t bytes = 0;
  bool dispatch = true;  ///< else in the return
};

class Assignment {
 public:
  Assignment(const TaskInputs& inputs, std::vector<Segment> segments);

  int servers() const { return static_cast<int>(loads_.size()); }
  std::int64_t load(int server) const { return loads_[static_cast<std::size_t>(server)]; }
  const Segment& segment(int index) const { return segments_[static_cast<std::size_t>(index)]; }
  std::span<const Segment> segments() const { return segments_; }
  /// Indices of the segments of which a server does a part, rising.
  const std::vector<int>& work_of(int server) { return work_[static_cast<std::size_t>(server)]; }
  /// Servers that do rows of a document and have its keys [0, prefix), in no order that matters.
  struct Holder {
    int server = 0;
    std::int64_t prefix = 0;
  };
  std::vector<Holder> holders(int document) const;
  /// Keys [0, n) of a document that a server has, or receives, for its tasks.
  std::int64_t prefix(int document, int server) const;
  bool at_home(const Segment& segment, int server) const { return place(server) == segment.home; }

  /// By how much a move changes the bytes of both exchanges, of all ranks together.
  std::int64_t bytes_of(const Move& move) const;
  /// A receiver that a move would give more, and more than the limit.
  std::optional<Overflow> overflow(const Move& move) const;
  /// A receiver above the limit as things are.
  std::optional<Overflow> overflow() const;
  void apply(const Move& move);

  /// What a place (rank, or ranks + external server) receives in an exchange.
  std::span<const std::int64_t> dispatched() const { return dispatched_; }
  std::span<const std::int64_t> returned() const { return returned_; }
  /// Of a server.
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
  /// Key bytes that a place receives for tasks of which the last ends at `prefix`.
  std::int64_t key_bytes(const Presence* presence, std::int64_t prefix) const;
  std::int64_t task_bytes(const Segment& segment, const Piece& task) const;
  std::int64_t dispatched_bytes(const Segment& segment, const Piece& task) const;
  std::int64_t returned_bytes(const Segment& segment, const Piece& task, int rank) const;
  void account(const Segment& segment, const Piece& task, std::int64_t sign);

  RowBytes bytes_;
  std::int64_t limit_;
  bool external_;
  std::vector<Segment> segments_;
  std::vector<std::vector<Presence>> presences_;  // by document; by place
  std::vector<int> places_;
  std::vector<std::int64_t> loads_;
  std::vector<std::int64_t> dispatched_, returned_;
  std::vector<std::vector<int>> work_;
};

}  // namespace longhaul::parallel

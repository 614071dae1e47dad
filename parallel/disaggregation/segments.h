#pragma once
// Documents as their homes hold them, cut in pieces for servers; internal to the planner.

#include <algorithm>
#include <cstdint>
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

/// Gives rows that no server has to servers, documents whole where they fit in a server's share:
/// the longest first, each to the server that is then the least loaded of those whose buffer has
/// room.
void deal(std::vector<Segment>& segments, const TaskInputs& inputs);

/// Work a second of each server; 1 where none is given.
std::vector<std::int64_t> speeds_of(const TaskInputs& inputs);

}  // namespace longhaul::parallel

#pragma once
// The run of a recurrence cut where documents begin, and the grid of chunks: what the kernels of
// every device agree on.

#include <cstdint>
#include <vector>

namespace longhaul::attention::detail {

/// Tokens of a chunk.
constexpr std::int64_t kLinearChunk = 64;

/// Consecutive rows of one document.
struct Segment {
  std::int64_t begin = 0, end = 0;
  bool first = false;   ///< the state that enters the run enters here
  bool last = false;    ///< the state that leaves the run leaves here
  bool starts = false;  ///< its first row is a document's first
  constexpr std::int64_t chunks() const { return (end - begin + kLinearChunk - 1) / kLinearChunk; }
};

/// At least one, empty where the run is. A run that begins with a document has no first one.
inline std::vector<Segment> segments_of(std::int64_t rows,
                                        const std::vector<std::int64_t>& starts) {
  std::vector<Segment> segments;
  std::int64_t begin = 0;
  bool from_start = false;
  const auto close = [&](std::int64_t end, bool last) {
    segments.push_back({begin, end, begin == 0 && !from_start, last, from_start});
    begin = end;
  };
  for (const std::int64_t start : starts) {
    if (start > 0) close(start, false);
    from_start = true;
  }
  close(rows, true);
  return segments;
}

}  // namespace longhaul::attention::detail

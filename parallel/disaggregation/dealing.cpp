// Tasks of homes that are no servers: where they begin before they are balanced.

#include <algorithm>
#include <numeric>

#include "parallel/disaggregation/assignment.h"
#include "parallel/disaggregation/rows.h"

namespace longhaul::parallel {
namespace {

/// Rows [begin, end) of a document: of segments [first, last), at cuts.
struct Chunk {
  std::size_t first = 0, last = 0;
  std::int64_t begin = 0, end = 0;
  std::int64_t area() const { return causal_area(begin, end); }
};

/// The document of segment last - 1, cut from its end in chunks of at most `most` pairs where cuts
/// permit.
void cut_document(std::span<const Segment> segments, std::size_t last, std::int64_t most,
                  std::vector<Chunk>& chunks) {
  std::int64_t end = segments[last - 1].end;
  while (end > 0) {
    std::int64_t begin = first_row_within(end, most);
    std::size_t from = last - 1;
    while (segments[from].begin > begin) --from;
    begin = segments[from].cut_above(begin);
    if (begin >= end) begin = segments[last - 1].cut_below(end - 1);  // one shard at least
    while (segments[from].end <= begin) ++from;
    chunks.push_back({from, last, begin, end});
    end = begin;
    last = from + (segments[from].begin < begin ? 1 : 0);
  }
}

}  // namespace

void deal(std::vector<Segment>& segments, const TaskInputs& inputs) {
  const std::vector<std::int64_t> speeds = speeds_of(inputs);
  const bool external = inputs.servers.mode == ServerMode::external;
  std::int64_t area = 0;
  for (const Segment& segment : segments) area += causal_area(segment.begin, segment.end);
  const std::int64_t share = area / static_cast<std::int64_t>(speeds.size());
  std::vector<Chunk> chunks;
  for (std::size_t first = 0, last = 0; first < segments.size(); first = last) {
    while (last < segments.size() && segments[last].document == segments[first].document) ++last;
    cut_document(segments, last, share, chunks);
  }
  std::ranges::stable_sort(chunks, std::greater{}, &Chunk::area);

  for (Segment& segment : segments) segment.pieces.clear();
  std::vector<std::int64_t> loads(speeds.size()), received(speeds.size());
  for (const Chunk& chunk : chunks) {
    std::int64_t bytes = inputs.bytes.query * (chunk.end - chunk.begin);
    for (std::size_t s = chunk.first; s < chunk.last; ++s) {
      if (external || s + 1 == chunk.last)
        bytes += inputs.bytes.key * std::min(chunk.end, segments[s].end);
    }
    // The one that is least loaded with it, of those that may receive it if there are any.
    std::size_t to = 0;
    bool to_fits = false;
    for (std::size_t server = 0; server < speeds.size(); ++server) {
      const bool fits = bytes <= inputs.servers.buffer_bytes - received[server];
      if (server == 0 || (fits && !to_fits) ||
          (fits == to_fits && less_ratio(loads[server] + chunk.area(), speeds[server],
                                         loads[to] + chunk.area(), speeds[to]))) {
        to = server;
        to_fits = fits;
      }
    }
    loads[to] += chunk.area();
    received[to] += bytes;
    for (std::size_t s = chunk.first; s < chunk.last; ++s) {
      segments[s].pieces.push_back({std::max(chunk.begin, segments[s].begin),
                                    std::min(chunk.end, segments[s].end), static_cast<int>(to)});
    }
  }
  for (Segment& segment : segments) {
    std::ranges::sort(segment.pieces, {}, &Piece::begin);
    // Neighbours that went to one server are one task.
    std::vector<Piece> joined;
    for (const Piece& piece : segment.pieces) {
      if (!joined.empty() && joined.back().server == piece.server) {
        joined.back().end = piece.end;
      } else {
        joined.push_back(piece);
      }
    }
    segment.pieces = std::move(joined);
  }
}

}  // namespace longhaul::parallel

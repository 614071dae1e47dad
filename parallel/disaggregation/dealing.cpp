// Tasks of homes that are no servers: where they begin before they are balanced.

#include <algorithm>
#include <span>

#include "parallel/disaggregation/segments.h"

namespace longhaul::parallel {
namespace {

using Wide = __int128;

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

/// Bytes of a chunk's dispatch.
std::int64_t bytes_of(const Chunk& chunk, std::span<const Segment> segments,
                      const TaskInputs& inputs) {
  std::int64_t keys = chunk.end;
  if (inputs.servers.mode == ServerMode::external) {  // each task brings its own
    keys = 0;
    for (std::size_t s = chunk.first; s < chunk.last; ++s)
      keys += std::min(chunk.end, segments[s].end);
  }
  return inputs.bytes.query * (chunk.end - chunk.begin) + inputs.bytes.key * keys;
}

/// Parts of a whole, of which it has 2^30; rounded up.
std::int64_t part_of(std::int64_t value, std::int64_t whole) {
  return static_cast<std::int64_t>(((static_cast<Wide>(value) << 30) + whole - 1) / whole);
}

/// Neighbouring pieces of one server made one.
void join(std::vector<Piece>& pieces) {
  std::ranges::sort(pieces, {}, &Piece::begin);
  std::vector<Piece> joined;
  for (const Piece& piece : pieces) {
    if (!joined.empty() && joined.back().server == piece.server) {
      joined.back().end = piece.end;
    } else {
      joined.push_back(piece);
    }
  }
  pieces = std::move(joined);
}

}  // namespace

void deal(std::vector<Segment>& segments, const TaskInputs& inputs) {
  const std::vector<std::int64_t> speeds = speeds_of(inputs);
  std::int64_t area = 0;
  for (const Segment& segment : segments) area += causal_area(segment.begin, segment.end);
  Wide speed = 0;
  for (const std::int64_t own : speeds) speed += own;
  std::vector<std::int64_t> shares;  // of the area
  for (const std::int64_t own : speeds) {
    const Wide share = static_cast<Wide>(area) * own / speed;
    shares.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(share)));
  }

  std::vector<Chunk> chunks;
  for (std::size_t first = 0, last = 0; first < segments.size(); first = last) {
    while (last < segments.size() && segments[last].document == segments[first].document) ++last;
    cut_document(segments, last, area / std::ssize(speeds), chunks);
  }
  std::ranges::stable_sort(chunks, std::greater{}, &Chunk::area);

  for (Segment& segment : segments) segment.pieces.clear();
  std::vector<std::int64_t> loads(speeds.size()), received(speeds.size());
  for (const Chunk& chunk : chunks) {
    const std::int64_t bytes = bytes_of(chunk, segments, inputs);
    std::int64_t load = 0, least = 0;
    std::size_t to = 0;
    bool fits = false;
    for (std::size_t server = 0; server < speeds.size(); ++server) {
      if (server == 0 || shares[server] != shares[server - 1])
        load = part_of(chunk.area(), shares[server]);
      const bool fits_here = bytes <= inputs.servers.buffer_bytes - received[server];
      const std::int64_t here = loads[server] + load;
      if (server == 0 || (fits_here == fits ? here < least : fits_here)) {
        to = server;
        least = here;
        fits = fits_here;
      }
    }
    loads[to] = least;
    received[to] += bytes;
    for (std::size_t s = chunk.first; s < chunk.last; ++s) {
      segments[s].pieces.push_back({std::max(chunk.begin, segments[s].begin),
                                    std::min(chunk.end, segments[s].end), static_cast<int>(to)});
    }
  }
  for (Segment& segment : segments) join(segment.pieces);
}

}  // namespace longhaul::parallel

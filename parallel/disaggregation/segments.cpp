#include "parallel/disaggregation/segments.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::parallel {

std::vector<Segment> segments_of(const TaskInputs& inputs) {
  const Layout& layout = inputs.layout;
  std::vector<Segment> segments;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    for (const attention::Run& run : layout.runs(rank)) {
      if (run.stride != 1 && run.count > 1) {
        runtime::fail(runtime::ExitCode::config, "layout ", name(layout.kind()), " gives rank ",
                      rank, " every ", run.stride,
                      "th token; attention servers take runs of consecutive tokens: use layout "
                      "packed");
      }
      const auto begin = inputs.documents.begin();
      auto next = std::upper_bound(begin, inputs.documents.end(), run.first);
      for (std::int64_t token = run.first; token < run.first + run.count; ++next) {
        const std::int64_t start = *(next - 1), stop = std::min(*next, run.first + run.count);
        segments.push_back({static_cast<int>(next - 1 - begin), token - start, stop - start, rank});
        token = stop;
      }
    }
  }
  std::ranges::sort(segments, [](const Segment& a, const Segment& b) {
    return a.document != b.document ? a.document < b.document : a.begin < b.begin;
  });
  const int first = server_rank(layout, inputs.servers, 0),
            count = server_count(layout, inputs.servers);
  for (Segment& segment : segments) {
    const int server = segment.home - first;
    const bool served = first >= 0 && server >= 0 && server < count;
    segment.pieces.push_back({segment.begin, segment.end, served ? server : -1});
  }
  return segments;
}

std::vector<std::int64_t> speeds_of(const TaskInputs& inputs) {
  if (!inputs.servers.speeds.empty()) return inputs.servers.speeds;
  return std::vector<std::int64_t>(
      static_cast<std::size_t>(server_count(inputs.layout, inputs.servers)), 1);
}

}  // namespace longhaul::parallel

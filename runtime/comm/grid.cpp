#include "runtime/comm/grid.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <sstream>

#include "runtime/comm/gather.h"
#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

constexpr std::array<Axis, kAxes> kAxisOrder{Axis::pipeline, Axis::data, Axis::tensor,
                                             Axis::context};

void check_degree(std::int64_t degree, const char* key) {
  if (degree < 1) fail(ExitCode::config, key, " is ", degree, "; expected at least 1");
}

/// Name, length, digest, length, ... of one rank; lengths keep "ab"+"c" apart from "a"+"bc".
std::string encode(const std::vector<NamedDigest>& digests) {
  std::ostringstream text;
  for (const NamedDigest& entry : digests) {
    text << entry.name.size() << ' ' << entry.name << entry.digest.size() << ' ' << entry.digest;
  }
  return text.str();
}

std::map<std::string, std::string> decode(const std::string& text) {
  std::map<std::string, std::string> digests;
  std::istringstream in(text);
  const auto field = [&] {
    std::size_t length = 0;
    in >> length;
    in.get();
    std::string value(std::min(length, text.size()), '\0');
    in.read(value.data(), static_cast<std::streamsize>(value.size()));
    return value;
  };
  while (in.peek() != std::istringstream::traits_type::eof()) {
    const std::string name = field();
    digests[name] = field();
  }
  return digests;
}

/// "0-2, 5": ranks in order, runs joined.
std::string ranges(const std::vector<int>& ranks) {
  std::ostringstream text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i;
    while (end + 1 < ranks.size() && ranks[end + 1] == ranks[end] + 1) ++end;
    text << (i == 0 ? "" : ", ") << ranks[i];
    if (end > i) text << '-' << ranks[end];
    i = end + 1;
  }
  return text.str();
}

}  // namespace

const char* name(Axis axis) {
  switch (axis) {
    case Axis::pipeline:
      return "pipeline";
    case Axis::data:
      return "data";
    case Axis::tensor:
      return "tensor";
    case Axis::context:
      return "context";
  }
  return "unknown";
}

ProcessGrid::ProcessGrid(const GridShape& shape)
    : sizes_{static_cast<int>(shape.pipeline), static_cast<int>(shape.data),
             static_cast<int>(shape.tensor), static_cast<int>(shape.context)} {
  check_degree(shape.data, "data_parallel_replicate_degree");
  check_degree(shape.context, "context_parallel_degree");
  for (const Axis axis : {Axis::tensor, Axis::pipeline}) {
    if (size(axis) != 1) {
      fail(ExitCode::config, name(axis), "_parallel_degree is ", size(axis),
           "; only 1 works until that axis exists, use the context and data axes");
    }
  }
}

int ProcessGrid::size() const {
  return std::accumulate(sizes_.begin(), sizes_.end(), 1, std::multiplies{});
}

int ProcessGrid::coordinate(int rank, Axis axis) const {
  LONGHAUL_CHECK(0 <= rank && rank < size(), "rank ", rank, " is not in the grid of ", size());
  int rest = rank;
  for (auto at = kAxisOrder.rbegin(); at != kAxisOrder.rend(); ++at) {
    if (*at == axis) return rest % size(axis);
    rest /= size(*at);
  }
  return 0;
}

std::unique_ptr<Communicator> ProcessGrid::split(Communicator& world, const std::vector<Axis>& axes,
                                                 const std::string& name) const {
  LONGHAUL_CHECK(world.size() == size(), "a grid of ", size(), " ranks on a communicator of ",
                 world.size());
  int color = 0;
  for (const Axis axis : kAxisOrder) {
    if (std::ranges::find(axes, axis) != axes.end()) continue;
    color = color * size(axis) + coordinate(world.rank(), axis);
  }
  return world.split(color, world.rank(), name);
}

void check_agreement(Communicator& world, const std::vector<NamedDigest>& digests,
                     const Stream& stream) {
  // Peers' waits have the communicator's own, shorter deadline; this one only bounds the host.
  const Deadline deadline = deadline_in(24.0 * 3600.0);
  const std::vector<std::string> texts = gather_texts(world, encode(digests), stream, deadline);
  if (std::ranges::all_of(texts, [&](const std::string& text) { return text == texts.front(); }))
    return;
  // name -> digest -> the ranks that hold it
  std::map<std::string, std::map<std::string, std::vector<int>>> holders;
  std::vector<std::map<std::string, std::string>> decoded;
  for (const std::string& text : texts) {
    decoded.push_back(decode(text));
    for (const auto& [name, digest] : decoded.back()) holders[name];
  }
  for (std::size_t rank = 0; rank < decoded.size(); ++rank) {
    for (auto& [name, by_digest] : holders) {
      const auto found = decoded[rank].find(name);
      by_digest[found == decoded[rank].end() ? "(none)" : found->second].push_back(
          static_cast<int>(rank));
    }
  }
  std::ostringstream table;
  for (const auto& [name, by_digest] : holders) {
    if (by_digest.size() == 1) continue;
    table << "\n  " << name << ':';
    for (const auto& [digest, ranks] : by_digest) {
      table << "\n    " << digest << (ranks.size() == 1 ? "  rank " : "  ranks ") << ranges(ranks);
    }
  }
  if (table.view().empty()) return;  // the same digests in another order
  fail(ExitCode::disagree,
       "ranks disagree; start all of them with the same program, config and data:", table.str());
}

}  // namespace longhaul::runtime

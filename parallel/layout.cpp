#include "parallel/layout.h"

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using attention::Run;
using runtime::ExitCode;

constexpr LayoutKind kKinds[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped};

/// First token of part `index` of `parts` nearly equal parts.
std::int64_t part_begin(std::int64_t seq_len, std::int64_t index, std::int64_t parts) {
  return seq_len * index / parts;
}

/// Appends [begin, end), joined to a run that ends where it begins.
void append_range(std::vector<Run>& runs, std::int64_t begin, std::int64_t end) {
  if (begin == end) return;
  if (!runs.empty() && runs.back().stride == 1 && runs.back().first + runs.back().count == begin) {
    runs.back().count += end - begin;
  } else {
    runs.push_back({begin, end - begin, 1});
  }
}

/// One sequence's shard of one rank.
std::vector<Run> shard(LayoutKind kind, std::int64_t seq_len, std::int64_t rank,
                       std::int64_t ranks) {
  std::vector<Run> runs;
  switch (kind) {
    case LayoutKind::contiguous:
      append_range(runs, part_begin(seq_len, rank, ranks), part_begin(seq_len, rank + 1, ranks));
      break;
    case LayoutKind::zigzag:
      for (const std::int64_t chunk : {rank, 2 * ranks - 1 - rank}) {
        append_range(runs, part_begin(seq_len, chunk, 2 * ranks),
                     part_begin(seq_len, chunk + 1, 2 * ranks));
      }
      break;
    case LayoutKind::striped:
      if (rank < seq_len) runs.push_back({rank, (seq_len - rank + ranks - 1) / ranks, ranks});
      break;
  }
  return runs;
}

}  // namespace

const char* name(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::contiguous:
      return "contiguous";
    case LayoutKind::zigzag:
      return "zigzag";
    case LayoutKind::striped:
      return "striped";
  }
  return "unknown";
}

std::vector<std::string> layout_names() {
  std::vector<std::string> names;
  for (const LayoutKind kind : kKinds) names.emplace_back(name(kind));
  return names;
}

LayoutKind layout_from_name(const std::string& text) {
  for (const LayoutKind kind : kKinds) {
    if (text == name(kind)) return kind;
  }
  runtime::fail(ExitCode::config, "unknown layout '", text,
                "'; expected contiguous, zigzag or striped");
}

Layout::Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch, int ranks)
    : kind_(kind), seq_len_(seq_len), batch_(batch) {
  LONGHAUL_CHECK(seq_len >= 0 && batch >= 0 && ranks >= 1, "layout of ", batch, " sequences of ",
                 seq_len, " tokens over ", ranks, " ranks");
  for (int rank = 0; rank < ranks; ++rank) {
    const std::vector<Run> one = shard(kind, seq_len, rank, ranks);
    std::vector<Run> all;
    std::int64_t rows = 0;
    for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
      for (Run run : one) {
        run.first += sequence * seq_len;
        rows += run.count;
        if (run.stride == 1) {
          append_range(all, run.first, run.first + run.count);
        } else {
          all.push_back(run);
        }
      }
    }
    runs_.push_back(std::move(all));
    rows_.push_back(rows);
  }
}

std::vector<std::int64_t> Layout::tokens_of(int rank) const {
  std::vector<std::int64_t> tokens;
  tokens.reserve(static_cast<std::size_t>(rows(rank)));
  for (const Run& run : runs(rank)) {
    for (std::int64_t i = 0; i < run.count; ++i) tokens.push_back(run.first + i * run.stride);
  }
  return tokens;
}

}  // namespace longhaul::parallel

#include "parallel/layout.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "parallel/layout_plan.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Run;
using attention::Slice;
using runtime::ExitCode;
using enum LayoutKind;

constexpr LayoutKind kKinds[] = {contiguous, zigzag, striped, document_zigzag, balanced, packed};

/// One sequence's shard of one rank.
std::vector<Run> shard(LayoutKind kind, std::int64_t seq_len, std::int64_t rank,
                       std::int64_t ranks) {
  std::vector<Run> runs;
  switch (kind) {
    case contiguous:
      append_range(runs, part_begin(seq_len, rank, ranks), part_begin(seq_len, rank + 1, ranks));
      break;
    case zigzag:
      for (const std::int64_t chunk : {rank, 2 * ranks - 1 - rank}) {
        append_range(runs, part_begin(seq_len, chunk, 2 * ranks),
                     part_begin(seq_len, chunk + 1, 2 * ranks));
      }
      break;
    case striped:
      if (rank < seq_len) runs.push_back({rank, (seq_len - rank + ranks - 1) / ranks, ranks});
      break;
    case document_zigzag:
    case balanced:
    case packed:
      LONGHAUL_CHECK(false, "layout ", name(kind), " follows from the mask; use Layout::make()");
  }
  return runs;
}

std::vector<std::vector<Run>> shards(LayoutKind kind, std::int64_t seq_len, std::int64_t batch,
                                     int ranks) {
  LONGHAUL_CHECK(seq_len >= 0 && batch >= 0 && ranks >= 1, "layout of ", batch, " sequences of ",
                 seq_len, " tokens over ", ranks, " ranks");
  std::vector<std::vector<Run>> all;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::vector<Run> one = shard(kind, seq_len, rank, ranks);
    std::vector<Run> runs;
    for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
      for (Run run : one) {
        run.first += sequence * seq_len;
        if (run.stride == 1) {
          append_range(runs, run.first, run.first + run.count);
        } else {
          runs.push_back(run);
        }
      }
    }
    all.push_back(std::move(runs));
  }
  return all;
}

std::int64_t longest_piece(LayoutKind kind, std::int64_t seq_len, std::int64_t ranks) {
  if (kind == striped) return std::min<std::int64_t>(1, seq_len);
  const std::int64_t pieces = kind == zigzag ? 2 * ranks : ranks;
  return (seq_len + pieces - 1) / pieces;
}

/// Visible pairs of the rows of a run.
std::int64_t area_of(const attention::Mask& mask, const Run& run) {
  const std::int64_t end = run.first + (run.count - 1) * run.stride + 1;
  std::int64_t area = 0;
  for (Slice slice : mask.slices_near(run.first, end, 0, mask.tokens())) {
    slice.q_begin = std::max(slice.q_begin, run.first);
    slice.q_end = std::min(slice.q_end, end);
    if (slice.q_begin >= slice.q_end) continue;
    if (run.stride == 1) {
      area += attention::area(slice);
      continue;
    }
    const std::int64_t passed = (slice.q_begin - run.first + run.stride - 1) / run.stride;
    for (std::int64_t row = run.first + passed * run.stride; row < slice.q_end; row += run.stride)
      area += slice.key_end(row) - slice.key_begin(row);
  }
  return area;
}

}  // namespace

const char* name(LayoutKind kind) {
  switch (kind) {
    case contiguous:
      return "contiguous";
    case zigzag:
      return "zigzag";
    case striped:
      return "striped";
    case document_zigzag:
      return "document_zigzag";
    case balanced:
      return "balanced";
    case packed:
      return "packed";
  }
  return "unknown";
}

std::span<const LayoutKind> layout_kinds() { return kKinds; }

LayoutKind layout_from_name(const std::string& text) {
  std::string known;
  for (const LayoutKind kind : kKinds) {
    if (text == name(kind)) return kind;
    known += (known.empty() ? "" : ", ") + std::string(name(kind));
  }
  runtime::fail(ExitCode::config, "unknown layout '", text, "'; expected one of: ", known);
}

bool depends_on_mask(LayoutKind kind) {
  return kind == document_zigzag || kind == balanced || kind == packed;
}

Layout::Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch,
               std::vector<std::vector<Run>> runs, std::int64_t chunk_tokens)
    : kind_(kind),
      seq_len_(seq_len),
      batch_(batch),
      chunk_tokens_(chunk_tokens),
      runs_(std::move(runs)) {
  static_assert(sizeof(Run) == 3 * sizeof(std::int64_t) &&
                std::endian::native == std::endian::little);
  digest_ = static_cast<std::uint64_t>(runs_.size());
  for (const std::vector<Run>& mine : runs_) {
    std::int64_t rows = 0;
    for (const Run& run : mine) rows += run.count;
    rows_.push_back(rows);
    // The number of runs is hashed by the length; the chain keeps the ranks apart.
    digest_ = XXH64(mine.data(), mine.size() * sizeof(Run), digest_);
  }
}

Layout::Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch, int ranks)
    : Layout(kind, seq_len, batch, shards(kind, seq_len, batch, ranks),
             longest_piece(kind, seq_len, ranks)) {}

Layout Layout::make(LayoutKind kind, const HeadMasks& masks, std::int64_t batch, int ranks) {
  LONGHAUL_CHECK(
      batch >= 0 && ranks >= 1 && (batch == 0 ? masks.tokens() == 0 : masks.tokens() % batch == 0),
      "layout of ", batch, " sequences over ", ranks, " ranks for a mask of ", masks.tokens(),
      " tokens");
  const std::int64_t seq_len = batch == 0 ? 0 : masks.tokens() / batch;
  if (!depends_on_mask(kind)) return {kind, seq_len, batch, ranks};
  LayoutPlan plan = kind == balanced ? plan_balanced(masks, ranks)
                    : kind == packed ? plan_packed(masks, ranks)
                                     : plan_document_zigzag(masks, ranks);
  return {kind, seq_len, batch, std::move(plan.runs), plan.chunk_tokens};
}

Layout Layout::with_empty_ranks(int count) const {
  LONGHAUL_CHECK(count >= 0, count, " empty ranks");
  std::vector<std::vector<Run>> runs = runs_;
  runs.resize(runs.size() + static_cast<std::size_t>(count));
  return {kind_, seq_len_, batch_, std::move(runs), chunk_tokens_};
}

std::vector<std::int64_t> Layout::tokens_of(int rank) const {
  std::vector<std::int64_t> tokens;
  tokens.reserve(static_cast<std::size_t>(rows(rank)));
  for (const Run& run : runs(rank)) {
    for (std::int64_t i = 0; i < run.count; ++i) tokens.push_back(run.first + i * run.stride);
  }
  return tokens;
}

std::vector<std::int64_t> query_areas(const HeadMasks& masks, const Layout& layout) {
  LONGHAUL_CHECK(masks.tokens() == layout.tokens(), "mask of ", masks.tokens(),
                 " tokens, layout of ", layout.tokens());
  std::vector<std::int64_t> areas;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    std::int64_t area = 0;
    for (const HeadMasks::Group& group : masks.groups()) {
      const std::int64_t heads = masks.shared() ? 1 : group.head_end - group.head_begin;
      for (const Run& run : layout.runs(rank)) area += heads * area_of(group.mask, run);
    }
    areas.push_back(area);
  }
  return areas;
}

SequenceEnds sequence_ends(const Layout& layout, int rank) {
  SequenceEnds ends;
  if (layout.seq_len() == 0) return ends;
  for (const std::int64_t token : layout.tokens_of(rank)) {
    if (token % layout.seq_len() == 0) ends.beginning.push_back(token / layout.seq_len());
    if ((token + 1) % layout.seq_len() == 0) ends.ending.push_back(token / layout.seq_len());
  }
  return ends;
}

}  // namespace longhaul::parallel

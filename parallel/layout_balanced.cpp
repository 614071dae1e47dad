// Equal chunks dealt to ranks so that their mask areas are equal: dearest first to the rank with
// the least, with a cap on the count (the default of MagiAttention's dispatch), then swaps. The
// rule stands in layout.h. Ties go to the lower index, so every rank plans the same.

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "parallel/layout.h"
#include "parallel/layout_plan.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Slice;
using Indices = std::vector<std::int64_t>;

constexpr std::int64_t kMostChunksOfRank = 256;
constexpr std::int64_t kTileRows = 128;
// A rank that already holds a piece of the chunk's document goes before the emptiest one while it
// is ahead of that by no more than this part of the chunk's weight.
constexpr std::int64_t kAffinitySlack = 4;
constexpr int kAffinityCandidates = 8;
constexpr double kCloseEnough = 1.01;  // to the mean: swaps beyond it only part documents

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// The token axis cut in `equal` chunks of `size` tokens, a multiple of the ranks, and a rest in
/// one nearly equal piece a rank: chunks number `equal` and up.
struct Chunks {
  std::int64_t tokens, ranks, size, equal;

  Chunks(std::int64_t tokens_in, std::int64_t ranks_in, std::int64_t of_rank)
      : tokens(tokens_in), ranks(ranks_in), size(tokens / (of_rank * ranks)), equal(0) {
    // Whole tiles, as long as the rest stays no dearer than a chunk.
    const std::int64_t tiled = size / kTileRows * kTileRows;
    if (tiled > 0 && tokens / ranks - of_rank * tiled <= tiled) size = tiled;
    if (size > 0) equal = of_rank * ranks;
  }
  std::int64_t count() const { return equal + ranks; }
  std::int64_t longest() const { return std::max(size, (rest() + ranks - 1) / ranks); }
  std::int64_t rest() const { return tokens - equal * size; }
  std::int64_t begin(std::int64_t chunk) const {
    return chunk <= equal ? chunk * size : equal * size + part_begin(rest(), chunk - equal, ranks);
  }
  std::int64_t of(std::int64_t token) const {
    if (token < equal * size) return token / size;
    return equal + ((token - equal * size + 1) * ranks - 1) / rest();
  }
};

Indices chunk_weights(const HeadMasks& masks, const Chunks& chunks) {
  Indices weights(at(chunks.count()), 0);
  for (const HeadMasks::Group& group : masks.groups()) {
    const std::int64_t heads = masks.shared() ? 1 : group.head_end - group.head_begin;
    for (Slice slice : group.mask.slices()) {
      const std::int64_t q_end = slice.q_end;
      for (std::int64_t chunk = chunks.of(slice.q_begin); slice.q_begin < q_end; ++chunk) {
        slice.q_end = std::min(q_end, chunks.begin(chunk + 1));
        weights[at(chunk)] += heads * attention::area(slice);
        slice.q_begin = slice.q_end;
      }
    }
  }
  return weights;
}

/// Which ranks hold a piece of the documents that span several chunks.
class Affinity {
 public:
  Affinity(const Indices& offsets, const Chunks& chunks)
      : parts_(at(chunks.count()), {-1, -1}), holders_(offsets.size()), held_(at(chunks.ranks), 0) {
    std::int64_t part = 0;
    const auto spanning = [&] {
      return chunks.of(offsets[at(part)]) < chunks.of(offsets[at(part + 1)] - 1) ? part : -1;
    };
    for (std::int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      if (chunks.begin(chunk) == chunks.begin(chunk + 1)) continue;
      while (offsets[at(part + 1)] <= chunks.begin(chunk)) ++part;
      parts_[at(chunk)].first = spanning();
      while (offsets[at(part + 1)] < chunks.begin(chunk + 1)) ++part;
      parts_[at(chunk)].last = spanning();
    }
  }
  /// holds() is about this chunk's documents from now on.
  void look_at(std::int64_t chunk) {
    ++stamp_;
    for (const std::int64_t part : {parts_[at(chunk)].first, parts_[at(chunk)].last}) {
      if (part < 0) continue;
      for (const std::int64_t rank : holders_[at(part)]) held_[at(rank)] = stamp_;
    }
  }
  bool holds(std::int64_t rank) const { return held_[at(rank)] == stamp_; }
  void give(std::int64_t chunk, std::int64_t rank) {
    for (const std::int64_t part : {parts_[at(chunk)].first, parts_[at(chunk)].last}) {
      if (part < 0) continue;
      Indices& holders = holders_[at(part)];
      if (std::ranges::find(holders, rank) == holders.end()) holders.push_back(rank);
    }
  }

 private:
  struct Parts {
    std::int64_t first, last;  // -1: inside the chunk
  };
  std::vector<Parts> parts_;      // of a chunk: the documents at its two ends
  std::vector<Indices> holders_;  // of a document
  Indices held_;
  std::int64_t stamp_ = 0;
};

/// Chunk numbers by falling weight.
Indices by_weight(const Indices& weights, std::int64_t begin, std::int64_t end) {
  Indices order(at(end - begin));
  std::iota(order.begin(), order.end(), begin);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](std::int64_t chunk) { return weights[at(chunk)]; });
  return order;
}

/// Which chunks each rank has, and what they weigh.
struct Deal {
  std::vector<Indices> chunks;  // of a rank; the equal ones by falling weight
  Indices rest;                 // of a rank: its piece of the rest
  Indices load;
  std::int64_t largest() const { return *std::ranges::max_element(load); }
};

/// Dearest chunk first, to the emptiest rank that has room; then the rest, dearest to emptiest.
Deal deal(const Chunks& chunks, const Indices& weights, Affinity affinity) {
  const std::int64_t ranks = chunks.ranks;
  Deal dealt{std::vector<Indices>(at(ranks)), Indices(at(ranks)), Indices(at(ranks), 0)};
  std::set<std::pair<std::int64_t, std::int64_t>> open;  // load and rank
  for (std::int64_t rank = 0; rank < ranks; ++rank) open.insert({0, rank});
  for (const std::int64_t chunk : by_weight(weights, 0, chunks.equal)) {
    const std::int64_t weight = weights[at(chunk)];
    affinity.look_at(chunk);
    auto taker = open.begin();
    auto candidate = taker;
    for (int i = 0; i < kAffinityCandidates && candidate != open.end(); ++i, ++candidate) {
      if (candidate->first - taker->first > weight / kAffinitySlack) break;
      if (affinity.holds(candidate->second)) {
        taker = candidate;
        break;
      }
    }
    const std::int64_t rank = taker->second;
    open.erase(taker);
    affinity.give(chunk, rank);
    dealt.chunks[at(rank)].push_back(chunk);
    dealt.load[at(rank)] += weight;
    if (static_cast<std::int64_t>(dealt.chunks[at(rank)].size()) < chunks.equal / ranks)
      open.insert({dealt.load[at(rank)], rank});
  }
  Indices emptiest(at(ranks));
  std::iota(emptiest.begin(), emptiest.end(), 0);
  std::ranges::stable_sort(emptiest, {}, [&](std::int64_t rank) { return dealt.load[at(rank)]; });
  const Indices pieces = by_weight(weights, chunks.equal, chunks.count());
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    dealt.rest[at(emptiest[i])] = pieces[i];
    dealt.load[at(emptiest[i])] += weights[at(pieces[i])];
  }
  return dealt;
}

/// A chunk of the dearest rank against a lighter one of another.
struct Swap {
  std::int64_t other = -1;
  std::size_t mine = 0, theirs = 0;  // places in the two ranks' chunks
  std::int64_t larger = 0;           // the larger of the two loads afterwards
};

/// The swap of two ranks that leaves the least larger load; both lists fall in weight, so the pairs
/// of each difference lie along one path through them.
void consider_swaps(const Deal& dealt, const Indices& weights, std::int64_t rank,
                    std::int64_t other, Swap& best) {
  const Indices &mine = dealt.chunks[at(rank)], &theirs = dealt.chunks[at(other)];
  const std::int64_t gap = dealt.load[at(rank)] - dealt.load[at(other)];
  for (std::size_t i = 0, j = 0; i < mine.size() && j < theirs.size();) {
    const std::int64_t moved = weights[at(mine[i])] - weights[at(theirs[j])];
    const std::int64_t larger =
        std::max(dealt.load[at(rank)] - moved, dealt.load[at(other)] + moved);
    if (larger < best.larger) best = {other, i, j, larger};
    if (2 * moved > gap) {
      ++i;
    } else {
      ++j;
    }
  }
}

/// Swaps chunks of the dearest rank until it weighs no more than `enough`, or no swap makes it
/// cheaper.
void improve(Deal& dealt, const Indices& weights, double enough) {
  const auto ranks = static_cast<std::int64_t>(dealt.load.size());
  const auto falling = [&](std::int64_t a, std::int64_t b) {
    return weights[at(a)] != weights[at(b)] ? weights[at(a)] > weights[at(b)] : a < b;
  };
  for (std::int64_t round = 0; round < 8 * ranks; ++round) {
    const std::int64_t dearest = std::ranges::max_element(dealt.load) - dealt.load.begin();
    Swap best;
    best.larger = dealt.load[at(dearest)];
    if (static_cast<double>(best.larger) <= enough) return;
    for (std::int64_t other = 0; other < ranks; ++other) {
      if (other != dearest) consider_swaps(dealt, weights, dearest, other, best);
    }
    if (best.other < 0) return;
    Indices &mine = dealt.chunks[at(dearest)], &theirs = dealt.chunks[at(best.other)];
    const std::int64_t moved = weights[at(mine[best.mine])] - weights[at(theirs[best.theirs])];
    std::swap(mine[best.mine], theirs[best.theirs]);
    dealt.load[at(dearest)] -= moved;
    dealt.load[at(best.other)] += moved;
    std::ranges::sort(mine, falling);
    std::ranges::sort(theirs, falling);
  }
}

LayoutPlan to_plan(const Chunks& chunks, Deal dealt) {
  LayoutPlan plan{{}, chunks.longest()};
  for (std::size_t rank = 0; rank < dealt.chunks.size(); ++rank) {
    Indices& mine = dealt.chunks[rank];
    mine.push_back(dealt.rest[rank]);
    std::ranges::sort(mine);
    std::vector<attention::Run> runs;
    for (const std::int64_t chunk : mine)
      append_range(runs, chunks.begin(chunk), chunks.begin(chunk + 1));
    plan.runs.push_back(std::move(runs));
  }
  // Ranks in the order of their first tokens: neighbours in the sequence are neighbours in rings.
  std::ranges::stable_sort(plan.runs, {}, [&](const std::vector<attention::Run>& runs) {
    return runs.empty() ? chunks.tokens : runs.front().first;
  });
  return plan;
}

}  // namespace

LayoutPlan plan_balanced(const HeadMasks& masks, int ranks) {
  const Indices parts = attention::independent_parts(masks);
  struct Candidate {
    Chunks chunks;
    Deal dealt;
    std::int64_t largest;
  };
  std::optional<Candidate> best;
  for (std::int64_t of_rank = 1;; of_rank *= 2) {
    const Chunks chunks(masks.tokens(), ranks, of_rank);
    const bool last = of_rank == kMostChunksOfRank || 2 * of_rank * ranks > masks.tokens();
    const Indices weights = chunk_weights(masks, chunks);
    const auto total =
        static_cast<double>(std::accumulate(weights.begin(), weights.end(), std::int64_t{0}));
    const double mean = total / ranks;
    const auto good = [&](std::int64_t area) {
      return static_cast<double>(area) <= kBalanceTarget * mean;
    };
    if (!last && !good(*std::ranges::max_element(weights))) continue;  // one chunk is too dear
    Deal dealt = deal(chunks, weights, Affinity(parts, chunks));
    improve(dealt, weights, kCloseEnough * mean);
    const std::int64_t largest = dealt.largest();
    if (!best || largest < best->largest) best = Candidate{chunks, std::move(dealt), largest};
    if (last || good(largest)) return to_plan(best->chunks, std::move(best->dealt));
  }
}

}  // namespace longhaul::parallel

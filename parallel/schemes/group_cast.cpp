// Group-cast (MagiAttention, SandAI 2025): each rank receives exactly the key/value rows that its
// queries see, head by head where masks differ, and returns partial gradients of just those, which
// the owner sums in the order of distance. Rank r serves rank r + h at hop h, and the next hop is
// in flight while this one is attended. Ranks that share no visible pair exchange nothing.
//
// Bytes sent: the set lower bound, rows and heads seen x (D + D_v) e; backward x (D + D_v) (e + a).

#include <algorithm>
#include <memory>

#include "parallel/schemes/arrivals.h"
#include "parallel/schemes/buffers.h"
#include "parallel/schemes/members.h"

namespace longhaul::parallel {
namespace {

/// Key rows [begin, end) of their owner.
struct Interval {
  std::int64_t begin, end;
  bool operator==(const Interval&) const = default;
};

/// What a rank needs of another's keys: for a run of key/value heads, some rows.
struct Cast {
  int head_begin, head_end;
  std::vector<Interval> intervals;  // disjoint, rising, not adjacent
  std::int64_t rows() const {
    std::int64_t rows = 0;
    for (const Interval& interval : intervals) rows += interval.end - interval.begin;
    return rows;
  }
};

/// Every key in a tightened band's range is seen by one of its queries, so ranges make the set.
std::vector<Cast> casts(const Bands& bands, const Shapes& shapes) {
  const int group = shapes.heads / shapes.kv_heads;
  std::vector<Cast> all;
  for (int head = 0; head < shapes.kv_heads;) {
    // Heads of one run of bands need the same.
    int end = head + 1;
    for (const HeadBands& run : bands) {
      if (run.head_begin <= head * group && run.head_end >= (head + 1) * group)
        end = std::max(end, run.head_end / group);
    }
    std::vector<Interval> seen;
    for (const HeadBands& run : heads_of(bands, head * group, (head + 1) * group)) {
      for (const Slice& band : run.bands) seen.push_back({band.k_begin, band.k_end});
    }
    std::ranges::sort(seen, {}, &Interval::begin);
    Cast cast{head, end, {}};
    for (const Interval& interval : seen) {
      if (!cast.intervals.empty() && interval.begin <= cast.intervals.back().end) {
        cast.intervals.back().end = std::max(cast.intervals.back().end, interval.end);
      } else {
        cast.intervals.push_back(interval);
      }
    }
    if (!cast.intervals.empty()) all.push_back(std::move(cast));
    head = end;
  }
  return all;
}

/// The bands with key rows numbered as they lie in the cast, packed one after another. The keys of
/// a band are within one interval.
std::vector<Slice> packed(std::vector<Slice> bands, const std::vector<Interval>& intervals) {
  std::vector<std::int64_t> shifts;  // by interval
  std::int64_t row = 0;
  for (const Interval& interval : intervals) {
    shifts.push_back(row - interval.begin);
    row += interval.end - interval.begin;
  }
  for (Slice& band : bands) {
    const auto after =
        std::ranges::upper_bound(intervals, band.k_begin, {}, &Interval::begin) - intervals.begin();
    const std::int64_t shift = shifts[static_cast<std::size_t>(after - 1)];
    band.k_begin += shift;
    band.k_end += shift;
    band.lo += shift;
    band.hi += shift;
  }
  return bands;
}

class CastingRank {
 public:
  CastingRank(const SchemeInputs& inputs, const Members& members, int rank)
      : inputs_(inputs),
        members_(members),
        rank_(rank),
        builder_(rank, 1),
        records_(inputs.shapes) {
    for (int hop = 0; hop < members.size(); ++hop) {
      // From the rank `hop` behind this one, and to the one `hop` ahead.
      bands_.push_back(members.bands(rank, behind(hop)));
      needed_.push_back(hop == 0 ? std::vector<Cast>() : casts(bands_.back(), inputs.shapes));
      given_.push_back(hop == 0 ? std::vector<Cast>()
                                : casts(members.bands(ahead(hop), rank), inputs.shapes));
      for (const Cast& cast : needed_.back()) most_needed_ = std::max(most_needed_, cast.rows());
      for (const Cast& cast : given_.back()) most_given_ = std::max(most_given_, cast.rows());
    }
  }

  Program forward() && {
    const ForwardViews own = add_forward_slots(builder_, inputs_, rank_);
    Buffers received(builder_, "kv", records_.kv, most_needed_, kv_heads());
    for (int hop = 0; hop < members_.size(); ++hop) {
      cast(own.kv, received, hop + 1);
      builder_.set_phase(1);
      if (hop == 0) {
        builder_.attend(own.q, own.kv, bands_[0], own.out, Mode::write);
        continue;
      }
      for (const Cast& cast : needed(hop)) {
        builder_.attend(queries(own.q, cast), packed(received, hop, cast), bands(hop, cast),
                        queries(own.out, cast), Mode::add);
      }
    }
    return std::move(builder_).finish();
  }

  Program backward() && {
    const BackwardViews own = add_backward_slots(builder_, inputs_, rank_);
    Buffers received(builder_, "kv", records_.kv, most_needed_, kv_heads());
    Buffers parts(builder_, "dkv_part", records_.dkv, most_needed_, kv_heads());
    Buffers arrived(builder_, "dkv_arrived", records_.dkv, most_given_, kv_heads());
    Arrivals arrivals;
    for (int hop = 0; hop < members_.size(); ++hop) {
      cast(own.kv, received, hop + 1);
      builder_.set_phase(1);
      if (hop == 0) {
        builder_.attend_backward(own.q_bundle, own.kv, bands_[0], own.dq, Mode::write, own.dkv,
                                 Mode::write);
        continue;
      }
      for (const Cast& cast : needed(hop)) {
        builder_.attend_backward(queries(own.q_bundle, cast), packed(received, hop, cast),
                                 bands(hop, cast), queries(own.dq, cast), Mode::add,
                                 packed(parts, hop, cast), Mode::write);
      }
      arrivals.add_all(builder_);
      give_back(parts, arrived, own.dkv, hop, arrivals);
    }
    arrivals.add_all(builder_);
    return std::move(builder_).finish();
  }

 private:
  int kv_heads() const { return inputs_.shapes.kv_heads; }
  int behind(int hop) const { return (rank_ - hop + members_.size()) % members_.size(); }
  int ahead(int hop) const { return (rank_ + hop) % members_.size(); }
  const std::vector<Cast>& needed(int hop) const { return needed_[static_cast<std::size_t>(hop)]; }
  const std::vector<Cast>& given(int hop) const { return given_[static_cast<std::size_t>(hop)]; }

  View queries(const View& view, const Cast& cast) const {
    const int group = inputs_.shapes.heads / kv_heads();
    return heads_of(view, cast.head_begin * group, cast.head_end * group);
  }
  /// A cast's rows one after another, its heads where they belong.
  static View packed(Buffers& buffers, int hop, const Cast& cast) {
    return heads_of(buffers.at(hop, cast.rows()), cast.head_begin, cast.head_end);
  }
  Bands bands(int hop, const Cast& cast) const {
    const int group = inputs_.shapes.heads / kv_heads();
    Bands seen = heads_of(bands_[static_cast<std::size_t>(hop)], cast.head_begin * group,
                          cast.head_end * group);
    for (HeadBands& run : seen) run.bands = parallel::packed(std::move(run.bands), cast.intervals);
    return seen;
  }
  /// The cast's rows in a view of all the owner's.
  static std::vector<View> rows_in(const View& view, const Cast& cast) {
    std::vector<View> rows;
    for (const Interval& interval : cast.intervals) {
      rows.push_back(
          heads_of(rows_of(view, interval.begin, interval.end), cast.head_begin, cast.head_end));
    }
    return rows;
  }
  /// The same rows in a packed view.
  static std::vector<View> rows_in_packed(const View& view, const Cast& cast) {
    std::vector<View> rows;
    std::int64_t row = 0;
    for (const Interval& interval : cast.intervals) {
      const std::int64_t count = interval.end - interval.begin;
      rows.push_back(rows_of(view, row, row + count));
      row += count;
    }
    return rows;
  }

  void cast(const View& own_kv, Buffers& received, int hop) {
    if (hop >= members_.size()) return;
    Message send{ahead(hop), {}, hop}, receive{behind(hop), {}, hop};
    for (const Cast& cast : given(hop)) std::ranges::copy(rows_in(own_kv, cast), append(send));
    for (const Cast& cast : needed(hop))
      std::ranges::copy(rows_in_packed(packed(received, hop, cast), cast), append(receive));
    builder_.transfer(0, {std::move(send)}, {std::move(receive)});
  }

  void give_back(Buffers& parts, Buffers& arrived, const View& dkv, int hop, Arrivals& arrivals) {
    const int tag = members_.size() + hop;
    Message send{behind(hop), {}, tag, inputs_.wire_dtype},
        receive{ahead(hop), {}, tag, inputs_.wire_dtype};
    for (const Cast& cast : needed(hop))
      std::ranges::copy(rows_in_packed(packed(parts, hop, cast), cast), append(send));
    for (const Cast& cast : given(hop)) {
      std::vector<View> from = rows_in_packed(packed(arrived, hop, cast), cast);
      std::ranges::copy(from, append(receive));
      arrivals.expect(std::move(from), rows_in(dkv, cast));
    }
    builder_.transfer(0, {std::move(send)}, {std::move(receive)});
  }
  static std::back_insert_iterator<std::vector<View>> append(Message& message) {
    return std::back_inserter(message.views);
  }

  const SchemeInputs& inputs_;
  const Members& members_;
  const int rank_;
  Builder builder_;
  const AttentionRecords records_;
  std::vector<Bands> bands_;                       // of the keys of the rank behind, by hop
  std::vector<std::vector<Cast>> needed_, given_;  // by hop
  std::int64_t most_needed_ = 0, most_given_ = 0;
};

ProgramGenerator prepare_group_cast(const SchemeInputs& inputs) {
  auto members = std::make_shared<Members>(inputs);
  return [&inputs, members](int rank) {
    CastingRank casting(inputs, *members, rank);
    return inputs.direction == Direction::forward ? std::move(casting).forward()
                                                  : std::move(casting).backward();
  };
}

}  // namespace

const Scheme group_cast_scheme{.name = "group_cast", .prepare = prepare_group_cast};

}  // namespace longhaul::parallel

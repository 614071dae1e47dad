#include "parallel/schemes/ring_plan.h"

#include <algorithm>
#include <utility>

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

/// Hops onward and back that reach everybody who sees a block, the fewest in all, so that the
/// longest stretch of members who do not see it is left out; of those the fewest for its gradient,
/// which starts at the first who sees it; onward where all are equal. `hops`: those of who see it,
/// onward and rising.
std::pair<int, int> fewest_hops(int size, const std::vector<int>& hops) {
  if (hops.empty()) return {0, 0};
  const int first = hops.front(), last = hops.back();
  std::pair<int, int> best{last, 0}, cost{last, last - first + 1};
  for (std::size_t i = 0; i < hops.size(); ++i) {  // back to this one, onward to the one before it
    const int back = size - hops[i], onward = i == 0 ? 0 : hops[i - 1];
    const int gradient = (last - hops[i] + 1) + (i == 0 ? 0 : onward - first + 1);
    if (std::pair(onward + back, gradient) < cost) {
      best = {onward, back};
      cost = {onward + back, gradient};
    }
  }
  return best;
}

}  // namespace

RingPlan::RingPlan(const Members& members, std::vector<RingLevel> levels, Circulating circulating)
    : levels_(std::move(levels)),
      circulating_(circulating),
      members_(members.size()),
      strides_(levels_.size(), 1) {
  for (std::size_t level = levels_.size() - 1; level > 0; --level)
    strides_[level - 1] = strides_[level] * levels_[level].size;
  LONGHAUL_CHECK(stride(0) * size(0) == members_, "levels of ", stride(0) * size(0),
                 " members for ", members_);
  counts_.reserve(static_cast<std::size_t>(members_) * static_cast<std::size_t>(members_ + 1));
  for (int block = 0; block < members_; ++block) {
    counts_.push_back(0);
    for (int hops = 0; hops < members_; ++hops) {
      const int who = visitor(block, hops);
      const bool sees = circulating == Circulating::queries ? members.visible(block, who)
                                                            : members.visible(who, block);
      counts_.push_back(counts_.back() + (sees ? 1 : 0));
    }
  }
  for (int level = 0; level < depth(); ++level) plan_level(members, level);
}

void RingPlan::plan_level(const Members& members, int level) {
  const int below = stride(level), whole = size(level) * below;
  // Going both ways, and going one heading: how far blocks go, and the rows that each member sends.
  std::vector<Reach> both, one;
  std::vector<std::int64_t> sent_both(static_cast<std::size_t>(members_), 0), sent_one = sent_both;
  std::vector<int> hops;  // those after which somebody sees the block
  for (int block = 0; block < members_; ++block) {
    for (int prefix = 0; prefix < members_; prefix += whole) {
      hops.clear();
      for (int hop = 1; hop < size(level); ++hop) {
        if (seen(block, prefix + hop * below, prefix + (hop + 1) * below) > 0) hops.push_back(hop);
      }
      const auto choose = [&](const Reach& far, std::vector<Reach>& reaches,
                              std::vector<std::int64_t>& sent) {
        for (const Heading heading : kHeadings) {
          for (int hop = 0; hop < far.on(heading); ++hop) {
            const int sender = visitor(block, moved(prefix, level, heading, hop));
            sent[static_cast<std::size_t>(sender)] += members.rows(block);
          }
        }
        reaches.push_back(far);
      };
      const auto [onward, back] = fewest_hops(size(level), hops);
      choose({onward, back}, both, sent_both);
      choose({hops.empty() ? 0 : hops.back(), 0}, one, sent_one);
    }
  }
  // Fewer hops in all are no gain when the slowest member then sends more.
  const bool fewer = std::ranges::max(sent_both) <= std::ranges::max(sent_one);
  reaches_.push_back(fewer ? std::move(both) : std::move(one));
  Reach& longest = longest_.emplace_back();
  for (const Reach& far : reaches_.back())
    longest = {std::max(longest.onward, far.onward), std::max(longest.back, far.back)};
}

int RingPlan::moved(int member, int level, Heading heading, int hops) const {
  const int at = member / stride(level) % size(level);
  const int to = (at + (heading == Heading::onward ? hops : size(level) - hops)) % size(level);
  return member + (to - at) * stride(level);
}

Path RingPlan::after(const Path& path, int level, Heading heading, int hop) const {
  return {moved(path.tuple, level, heading, hop),
          path.back | (heading == Heading::back ? 1u << level : 0u)};
}

int RingPlan::block_at(int member, int tuple) const {
  for (int level = 0; level < depth(); ++level)
    member = moved(member, level, Heading::back, tuple / stride(level) % size(level));
  return member;
}

int RingPlan::visitor(int block, int tuple) const {
  for (int level = 0; level < depth(); ++level)
    block = moved(block, level, Heading::onward, tuple / stride(level) % size(level));
  return block;
}

int RingPlan::seen(int block, int begin, int end) const {
  const int* counts =
      counts_.data() + static_cast<std::size_t>(block) * static_cast<std::size_t>(members_ + 1);
  return counts[end] - counts[begin];
}

RingPlan::Reach RingPlan::reach(int block, int tuple, int level) const {
  const int whole = size(level) * stride(level);
  return reaches_[static_cast<std::size_t>(level)]
                 [static_cast<std::size_t>(block * (members_ / whole) + tuple / whole)];
}

/// Whether the block takes the hops of `path` above `level` on those ways.
bool RingPlan::took(int block, const Path& path, int level) const {
  for (int outer = 0; outer < level; ++outer) {
    const int hops = path.tuple / stride(outer) % size(outer);
    const bool back = (path.back >> outer & 1u) != 0;
    const Reach far = reach(block, path.tuple, outer);
    if (hops > 0 && (back ? size(outer) - hops > far.back : hops > far.onward)) return false;
  }
  return true;
}

int RingPlan::last(int block, const Path& path, int level, Heading heading) const {
  return took(block, path, level) ? reach(block, path.tuple, level).on(heading) : 0;
}

int RingPlan::longest(int level, Heading heading) const {
  return longest_[static_cast<std::size_t>(level)].on(heading);
}

bool RingPlan::accumulated(int block, const Path& path, int level, Heading heading, int hop) const {
  const int below = stride(level), end = path.tuple + size(level) * below;
  return took(block, path, level) &&
         (heading == Heading::onward
              ? seen(block, path.tuple + below, path.tuple + (hop + 1) * below)
              : seen(block, end - hop * below, end)) > 0;
}

}  // namespace longhaul::parallel

#include "attention/head_masks.h"

#include <xxhash.h>

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {

HeadMasks::HeadMasks(Mask mask) : tokens_(mask.tokens()) {
  groups_.push_back({0, kAllHeads, std::move(mask)});
}

HeadMasks HeadMasks::per_head(std::vector<Mask> masks) {
  const std::vector<int> one(masks.size(), 1);
  return in_groups(std::move(masks), one);
}

HeadMasks HeadMasks::in_groups(std::vector<Mask> masks, std::span<const int> heads) {
  LONGHAUL_CHECK(masks.size() == heads.size(), masks.size(), " masks of ", heads.size(), " groups");
  if (masks.empty()) runtime::fail(runtime::ExitCode::data, "no masks given; expected one a head");
  HeadMasks all;
  all.tokens_ = masks[0].tokens();
  int head = 0;
  for (std::size_t group = 0; group < masks.size(); ++group) {
    if (masks[group].tokens() != all.tokens_) {
      runtime::fail(runtime::ExitCode::data, "the mask of head ", head, " is over ",
                    masks[group].tokens(), " tokens, that of head 0 over ", all.tokens_);
    }
    const int end = head + heads[group];
    if (!all.groups_.empty() && all.groups_.back().mask == masks[group]) {
      all.groups_.back().head_end = end;
    } else {
      all.groups_.push_back({head, end, std::move(masks[group])});
    }
    head = end;
  }
  return all;
}

const Mask& HeadMasks::of(int head) const {
  const auto found = std::ranges::find_if(groups_, [&](const Group& group) {
    return group.head_begin <= head && head < group.head_end;
  });
  LONGHAUL_CHECK(found != groups_.end(), "head ", head, " has no mask; there are ", heads());
  return found->mask;
}

std::int64_t HeadMasks::area(int heads) const {
  if (!shared() && heads != this->heads()) {
    runtime::fail(runtime::ExitCode::data, "masks of ", this->heads(), " heads for ", heads,
                  " query heads");
  }
  std::int64_t sum = 0;
  for (const Group& group : groups_)
    sum += group.mask.area() * (std::min(group.head_end, heads) - group.head_begin);
  return sum;
}

std::uint64_t HeadMasks::digest() const {
  std::uint64_t digest = static_cast<std::uint64_t>(tokens_);
  for (const Group& group : groups_) {
    const std::uint64_t words[] = {digest, static_cast<std::uint64_t>(group.head_end),
                                   group.mask.digest()};
    digest = XXH64(words, sizeof words, 0);
  }
  return digest;
}

HeadMasks HeadMasks::repeated(std::int64_t copies) const {
  HeadMasks all = *this;
  all.tokens_ = tokens_ * copies;
  for (Group& group : all.groups_) group.mask = group.mask.repeated(copies);
  return all;
}

// A visible pair forbids cuts in (min, max] of its two tokens. Of a slice's pairs with one positive
// distance key - query these are one range, and the range of a larger distance holds that of a
// smaller one; so the largest distance stands for all, and the most negative one for the keys
// before their queries.
std::vector<std::int64_t> independent_parts(const HeadMasks& masks) {
  struct Range {
    std::int64_t begin, end;  // tokens that must not start a part
  };
  std::vector<Range> joined;
  for (const HeadMasks::Group& group : masks.groups()) {
    for (const Slice& s : group.mask.slices()) {
      if (s.hi > 0)
        joined.push_back(
            {std::max(s.q_begin, s.k_begin - s.hi) + 1, std::min(s.q_end + s.hi, s.k_end)});
      if (s.lo < 0)
        joined.push_back(
            {std::max(s.k_begin, s.q_begin + s.lo) + 1, std::min(s.q_end, s.k_end - s.lo)});
    }
  }
  std::ranges::sort(joined, {}, &Range::begin);
  std::vector<std::int64_t> offsets;
  std::int64_t next = 0;  // every cut before it is decided
  const auto cut_until = [&](std::int64_t end) {
    for (; next < end; ++next) offsets.push_back(next);
  };
  for (const Range& range : joined) {
    cut_until(range.begin);
    next = std::max(next, range.end);
  }
  cut_until(masks.tokens() + 1);
  return offsets;
}

}  // namespace longhaul::attention

#include "attention/head_masks.h"

#include <xxhash.h>

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {

HeadMasks::HeadMasks(Mask mask) : tokens_(mask.tokens()) {
  groups_.push_back({0, kAllHeads, std::move(mask)});
}

HeadMasks HeadMasks::per_head(std::vector<Mask> masks) {
  if (masks.empty()) runtime::fail(runtime::ExitCode::data, "no masks given; expected one a head");
  HeadMasks all;
  all.tokens_ = masks[0].tokens();
  for (std::size_t head = 0; head < masks.size(); ++head) {
    if (masks[head].tokens() != all.tokens_) {
      runtime::fail(runtime::ExitCode::data, "the mask of head ", head, " is over ",
                    masks[head].tokens(), " tokens, that of head 0 over ", all.tokens_);
    }
    const int at = static_cast<int>(head);
    if (!all.groups_.empty() && all.groups_.back().mask == masks[head]) {
      all.groups_.back().head_end = at + 1;
    } else {
      all.groups_.push_back({at, at + 1, std::move(masks[head])});
    }
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

}  // namespace longhaul::attention

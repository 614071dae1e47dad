#include "parallel/schemes/level_ring.h"

#include <algorithm>

#include "parallel/schemes/buffers.h"
#include "runtime/error.h"

namespace longhaul::parallel {

RingWay::RingWay(std::vector<RingLevel> levels, const std::vector<bool>& seen, bool back)
    : levels_(std::move(levels)), strides_(levels_.size(), 1), back_(back) {
  for (std::size_t level = levels_.size() - 1; level > 0; --level)
    strides_[level - 1] = strides_[level] * levels_[level].size;
  members_ = strides_[0] * levels_[0].size;
  counts_.reserve(seen.size() + static_cast<std::size_t>(members_));
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (i % static_cast<std::size_t>(members_) == 0) counts_.push_back(0);
    counts_.push_back(counts_.back() + (seen[i] ? 1 : 0));
  }
}

int RingWay::moved(int member, int level, int hops) const {
  const int at = member / stride(level) % size(level);
  const int to = at + (back_ ? -hops : hops) % size(level) + size(level);
  return member + (to % size(level) - at) * stride(level);
}

int RingWay::block_at(int member, int hops) const {
  for (int level = 0; level < static_cast<int>(levels_.size()); ++level)
    member = moved(member, level, -(hops / stride(level) % size(level)));
  return member;
}

int RingWay::visitor(int block, int hops) const {
  for (int level = 0; level < static_cast<int>(levels_.size()); ++level)
    block = moved(block, level, hops / stride(level) % size(level));
  return block;
}

int RingWay::seen(int block, int begin, int end) const {
  const int* counts =
      counts_.data() + static_cast<std::size_t>(block) * static_cast<std::size_t>(members_ + 1);
  return counts[end] - counts[begin];
}

bool RingWay::travels(int block, int prefix, int level, int hop) const {
  return hop < size(level) &&
         seen(block, prefix + hop * stride(level), prefix + size(level) * stride(level)) > 0;
}

int RingWay::last(int block, int prefix, int level) const {
  int hop = size(level) - 1;
  while (hop > 0 && !travels(block, prefix, level, hop)) --hop;
  return hop;
}

bool RingWay::accumulated(int block, int prefix, int level, int hop) const {
  return hop >= 1 && seen(block, prefix + stride(level), prefix + (hop + 1) * stride(level)) > 0;
}

namespace {

/// The last hop that a block of a one-level ring goes onward, when those at later hops are reached
/// going back: the fewest hops in all, onward where it makes no difference. `seen` by hop.
int last_onward(const std::vector<bool>& seen) {
  const int members = static_cast<int>(seen.size());
  int best = members - 1, fewest = members, before = 0;  // `before`: the last hop that sees it
  for (int hop = 1; hop < members; ++hop) {
    if (!seen[static_cast<std::size_t>(hop)]) continue;
    // Back to this hop, onward up to the one before it.
    if (before + members - hop < fewest) {
      fewest = before + members - hop;
      best = before;
    }
    before = hop;
  }
  return before <= fewest ? members - 1 : best;
}

}  // namespace

RingPlan::RingPlan(const Members& members, const std::vector<RingLevel>& levels,
                   Circulating circulating)
    : circulating_(circulating) {
  const int size = members.size();
  const auto entries = static_cast<std::size_t>(size) * static_cast<std::size_t>(size);
  std::vector<bool> onward(entries, false), back(entries, false);
  const RingWay positions(levels, {}, false);
  LONGHAUL_CHECK(positions.stride(0) * positions.size(0) == size, "levels of ",
                 positions.stride(0) * positions.size(0), " members for ", size);
  bool any_back = false;
  std::vector<bool> seen(static_cast<std::size_t>(size));
  for (int block = 0; block < size; ++block) {
    for (int hops = 0; hops < size; ++hops) {
      const int visitor = positions.visitor(block, hops);
      seen[static_cast<std::size_t>(hops)] = circulating == Circulating::queries
                                                 ? members.visible(block, visitor)
                                                 : members.visible(visitor, block);
    }
    const int turn = levels.size() == 1 ? last_onward(seen) : size - 1;
    const auto at = [&](int hops) {
      return static_cast<std::size_t>(block) * static_cast<std::size_t>(size) +
             static_cast<std::size_t>(hops);
    };
    for (int hops = 0; hops < size; ++hops) {
      if (!seen[static_cast<std::size_t>(hops)]) continue;
      if (hops <= turn) {
        onward[at(hops)] = true;
      } else {
        back[at(size - hops)] = any_back = true;
      }
    }
  }
  ways_.emplace_back(levels, onward, false);
  if (any_back) ways_.emplace_back(levels, back, true);
}

namespace {

/// The recursion over levels. A block that is at this member after the hops `prefix` is `held`;
/// none where nobody from here on sees it.
class Circulation {
 public:
  using Held = std::optional<View>;
  using Into = std::function<View()>;
  /// Attends, or takes note of, a block where it is.
  using Visit = std::function<void(const View& held, int block)>;
  /// Whether it wrote the block's gradient to into().
  using BackwardVisit = std::function<bool(const View& held, int block, const Into& into)>;

  Circulation(const RingMember& ring, const RingWay& way, const View& own, SlotKind block_kind,
              SlotKind gradient_kind, int block_buffers = 2)
      : ring_(ring), way_(way), own_(own) {
    const std::int64_t others = ring.members.longest(ring.self), mine = rows(ring.self),
                       any = std::max(others, mine);
    for (int level = 0; level < static_cast<int>(way_.levels().size()); ++level) {
      // One level has plain names; of several, each has its number.
      const std::string number = way_.levels().size() > 1 ? runtime::concat("level", level, ".")
                                 : way.back()             ? "back."
                                                          : "";
      const auto buffers = [&](const char* what, SlotKind kind, std::int64_t rows, int count) {
        return Buffers(ring.builder, runtime::concat(ring.prefix, number, name(kind), what), kind,
                       rows, own.heads(), count);
      };
      levels_.push_back({buffers("", block_kind, others, block_buffers),
                         buffers("_part", gradient_kind, any, 2),
                         buffers("_arrived", gradient_kind, others, 2),
                         buffers("_home", gradient_kind, level == 0 ? mine : any, 1),
                         {}});
    }
  }

  /// The first exchange, ahead of everything else; the first hop then finds it done.
  void start() {
    pass(0, 0, 0, own_);
    started_ = true;
  }
  /// At home a block is visited on its way onward, not on its way back.
  void forward(const Visit& visit) { forward(visit, 0, 0, own_); }
  /// Where the gradient of this member's own block by those on this way lies, if any see it.
  Held backward(const BackwardVisit& visit, const View& into) {
    return backward(visit, 0, 0, own_, [&] { return into; });
  }

 private:
  struct Level {
    Buffers block, part, arrived, home;
    Held came_home;
  };
  bool attends(int hops) const { return hops > 0 || !way_.back(); }
  Level& at(int level) { return levels_[static_cast<std::size_t>(level)]; }
  int depth() const { return static_cast<int>(levels_.size()); }
  /// The tuple of the outer hops `prefix` and hop `hop` of the level.
  int hops(int level, int prefix, int hop) const { return prefix + hop * way_.stride(level); }
  int block(int hops) const { return way_.block_at(ring_.self, hops); }
  std::int64_t rows(int member) const { return ring_.members.rows(member); }
  int channel(int level) const { return way_.levels()[static_cast<std::size_t>(level)].channel; }
  int rank(int level, int hops) const {
    return ring_.ranks[static_cast<std::size_t>(way_.moved(ring_.self, level, hops))];
  }
  Held held_at(int level, int prefix, int hop, const Held& held) {
    if (hop == 0) return held;
    const int here = block(hops(level, prefix, hop));
    if (!way_.travels(here, prefix, level, hop)) return {};
    return at(level).block.at(hop, rows(here));
  }

  /// Sends the block of this hop on and receives the next one, before the compute that hides it.
  void pass(int level, int prefix, int hop, const Held& held) {
    if (hop + 1 >= way_.size(level) || (started_ && level == 0 && hop == 0)) return;
    const int now = block(hops(level, prefix, hop)), next = block(hops(level, prefix, hop + 1));
    std::vector<Message> sends, receives;
    if (way_.travels(now, prefix, level, hop + 1))
      sends.push_back({rank(level, 1), {*held_at(level, prefix, hop, held)}, now});
    if (const Held arriving = held_at(level, prefix, hop + 1, held))
      receives.push_back({rank(level, -1), {*arriving}, next});
    ring_.builder.transfer(channel(level), std::move(sends), std::move(receives));
  }

  void forward(const Visit& visit, int level, int prefix, const Held& held) {
    if (level == depth()) {
      if (held && attends(prefix)) visit(*held, block(prefix));
      return;
    }
    for (int hop = 0; hop < way_.size(level); ++hop) {
      pass(level, prefix, hop, held);
      forward(visit, level + 1, hops(level, prefix, hop), held_at(level, prefix, hop, held));
    }
  }

  /// The gradient of the held block by all members below this position of the outer levels.
  Held backward(const BackwardVisit& visit, int level, int prefix, const Held& held,
                const Into& into) {
    if (level == depth()) {
      const bool wrote = held && attends(prefix) && visit(*held, block(prefix), into);
      return wrote ? Held(into()) : Held();
    }
    Held own;
    for (int hop = 0; hop < way_.size(level); ++hop) {
      pass(level, prefix, hop, held);
      const int below = hops(level, prefix, hop);
      const Held here = held_at(level, prefix, hop, held);
      if (hop == 0) {
        own = backward(visit, level + 1, below, here, into);
      } else {
        const Into part = [&] { return at(level).part.at(hop, rows(block(below))); };
        hand_on(level, prefix, hop, backward(visit, level + 1, below, here, part));
      }
    }
    // What came home joins what stayed there.
    if (way_.last(block(prefix), prefix, level) == 0) return own;
    const View home = *at(level).came_home;
    if (!own) return home;
    ring_.builder.accumulate(home, *own);
    return own;
  }

  /// Adds what arrived for the block of this hop to this member's part, and sends the sum on, or
  /// home.
  void hand_on(int level, int prefix, int hop, Held sum) {
    const int visited = block(hops(level, prefix, hop));
    if (way_.accumulated(visited, prefix, level, hop - 1) &&
        way_.travels(visited, prefix, level, hop)) {
      const View arrived = at(level).arrived.at(hop, rows(visited));
      if (sum) {
        ring_.builder.accumulate(arrived, *sum);
      } else {
        sum = arrived;
      }
    }
    std::vector<Message> sends, receives;
    const int last = way_.last(visited, prefix, level);
    if (sum) sends.push_back(gradient(rank(level, hop < last ? 1 : -hop), *sum, visited));
    if (hop + 1 < way_.size(level)) {  // what the member before passes on after this hop
      const int next = block(hops(level, prefix, hop + 1));
      if (way_.accumulated(next, prefix, level, hop) &&
          way_.travels(next, prefix, level, hop + 1)) {
        receives.push_back(
            gradient(rank(level, -1), at(level).arrived.at(hop + 1, rows(next)), next));
      }
    }
    const int own = block(prefix);
    if (hop == way_.last(own, prefix, level)) {
      // After the last hop a part buffer is free; a block that turns back earlier needs another.
      Level& l = at(level);
      l.came_home = (hop + 1 == way_.size(level) ? l.part : l.home).at(hop + 1, rows(own));
      receives.push_back(gradient(rank(level, hop), *l.came_home, own));
    }
    ring_.builder.transfer(channel(level), std::move(sends), std::move(receives));
  }

  Message gradient(int peer, const View& view, int block) const {
    return {peer, {view}, ring_.members.size() + block, ring_.wire_dtype};
  }

  const RingMember& ring_;
  const RingWay& way_;
  const View own_;
  std::vector<Level> levels_;
  bool started_ = false;
};

/// A circulation for each way, all of them started.
std::vector<Circulation> circulations(const RingMember& ring, const View& own, SlotKind block_kind,
                                      SlotKind gradient_kind, int block_buffers = 2) {
  std::vector<Circulation> all;
  for (const RingWay& way : ring.plan.ways())
    all.emplace_back(ring, way, own, block_kind, gradient_kind, block_buffers);
  for (Circulation& circulation : all) circulation.start();
  return all;
}

bool values_alone(const RingMember& ring) { return ring.plan.circulating() == Circulating::values; }

}  // namespace

void ring_forward(const RingMember& ring, const ForwardViews& views) {
  Builder& builder = ring.builder;
  const bool apart = values_alone(ring);
  auto ways = circulations(ring, views.kv, apart ? SlotKind::v : SlotKind::kv, SlotKind::dkv);
  const auto visit = [&](const View& held, int block) {
    builder.set_phase(1);
    const Bands bands = ring.members.bands(ring.self, block);
    const Mode mode = block == ring.self ? Mode::write : Mode::add;
    if (apart) {
      builder.attend(views.q, ring.keys(block), bands, views.out, mode, held);
    } else {
      builder.attend(views.q, held, bands, views.out, mode);
    }
  };
  for (Circulation& way : ways) way.forward(visit);
}

void ring_backward(const RingMember& ring, const BackwardViews& views) {
  Builder& builder = ring.builder;
  const bool queries = ring.plan.circulating() == Circulating::queries, apart = values_alone(ring);
  const SlotKind kind = queries ? SlotKind::q_bundle : apart ? SlotKind::v : SlotKind::kv;
  auto ways = circulations(ring, queries ? views.q_bundle : views.kv, kind,
                           queries ? SlotKind::dq : SlotKind::dkv);
  const auto visit = [&](const View& held, int block, const Circulation::Into& into) {
    builder.set_phase(1);
    const bool at_home = block == ring.self;  // comes first, and defines what stays
    const Bands bands =
        queries ? ring.members.bands(block, ring.self) : ring.members.bands(ring.self, block);
    if (!at_home && sees_nothing(bands)) return false;
    const Mode staying = at_home ? Mode::write : Mode::add;
    if (queries) {
      builder.attend_backward(held, views.kv, bands, into(), Mode::write, views.dkv, staying);
    } else if (apart) {
      builder.attend_backward(views.q_bundle, ring.keys(block), bands, views.dq, staying, into(),
                              Mode::write, held);
    } else {
      builder.attend_backward(views.q_bundle, held, bands, views.dq, staying, into(), Mode::write);
    }
    return true;
  };
  const View into = queries ? views.dq : views.dkv;
  for (Circulation& way : ways) {
    const auto sum = way.backward(visit, into);
    if (sum && *sum != into) builder.accumulate(*sum, into);
  }
}

std::function<View(int)> gather_keys(const RingMember& ring, const View& own) {
  std::vector<View> keys(static_cast<std::size_t>(ring.members.size()));
  for (Circulation& way :
       circulations(ring, own, SlotKind::k, SlotKind::dkv, ring.members.size())) {
    way.forward([&](const View& held, int block) { keys[static_cast<std::size_t>(block)] = held; });
  }
  return [keys](int member) { return keys[static_cast<std::size_t>(member)]; };
}

Circulating cheaper_backward(const Shapes& shapes, std::optional<runtime::DType> wire_dtype) {
  const std::int64_t keys = shapes.kv_heads * (cell_bytes(SlotKind::kv, shapes) +
                                               cell_bytes(SlotKind::dkv, shapes, wire_dtype));
  const std::int64_t queries = shapes.heads * (cell_bytes(SlotKind::q_bundle, shapes) +
                                               cell_bytes(SlotKind::dq, shapes, wire_dtype));
  return queries < keys ? Circulating::queries : Circulating::keys;
}

}  // namespace longhaul::parallel

#include "parallel/schemes/level_ring.h"

#include <algorithm>

#include "parallel/schemes/buffers.h"
#include "runtime/error.h"

namespace longhaul::parallel {

RingPlan::RingPlan(const Members& members, std::vector<RingLevel> levels, Circulating circulating)
    : levels_(std::move(levels)),
      strides_(levels_.size(), 1),
      circulating_(circulating),
      members_(members.size()),
      counts_(static_cast<std::size_t>(members_) * static_cast<std::size_t>(members_ + 1), 0) {
  for (std::size_t level = levels_.size() - 1; level > 0; --level)
    strides_[level - 1] = strides_[level] * levels_[level].size;
  LONGHAUL_CHECK(strides_[0] * levels_[0].size == members_, "levels of ",
                 strides_[0] * levels_[0].size, " members for ", members_);
  auto* counts = counts_.data();
  for (int block = 0; block < members_; ++block) {
    for (int hops = 0; hops < members_; ++hops, ++counts) {
      // block_at() inverted: moving back by the hops that lead from the visitor to the block.
      int visitor = block;
      for (int level = 0; level < static_cast<int>(levels_.size()); ++level)
        visitor = moved(visitor, level, hops / stride(level) % size(level));
      const bool sees = circulating_ == Circulating::queries ? members.visible(block, visitor)
                                                             : members.visible(visitor, block);
      counts[1] = counts[0] + (sees ? 1 : 0);
    }
    ++counts;
  }
}

int RingPlan::moved(int member, int level, int hops) const {
  const int at = member / stride(level) % size(level);
  const int to = ((at + hops) % size(level) + size(level)) % size(level);
  return member + (to - at) * stride(level);
}

int RingPlan::block_at(int member, int hops) const {
  for (int level = 0; level < static_cast<int>(levels_.size()); ++level)
    member = moved(member, level, -(hops / stride(level) % size(level)));
  return member;
}

int RingPlan::seen(int block, int begin, int end) const {
  const int* counts =
      counts_.data() + static_cast<std::size_t>(block) * static_cast<std::size_t>(members_ + 1);
  return counts[end] - counts[begin];
}

bool RingPlan::travels(int block, int prefix, int level, int hop) const {
  return hop < size(level) &&
         seen(block, prefix + hop * stride(level), prefix + size(level) * stride(level)) > 0;
}

int RingPlan::last(int block, int prefix, int level) const {
  int hop = size(level) - 1;
  while (hop > 0 && !travels(block, prefix, level, hop)) --hop;
  return hop;
}

bool RingPlan::accumulated(int block, int prefix, int level, int hop) const {
  return hop >= 1 && seen(block, prefix + stride(level), prefix + (hop + 1) * stride(level)) > 0;
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

  Circulation(const RingMember& ring, const View& own, SlotKind block_kind, SlotKind gradient_kind,
              int block_buffers = 2)
      : ring_(ring), plan_(ring.plan), own_(own) {
    const std::int64_t others = ring.members.longest(ring.self), mine = rows(ring.self),
                       any = std::max(others, mine);
    for (int level = 0; level < static_cast<int>(plan_.levels().size()); ++level) {
      // One level has plain names; of several, each has its number.
      const std::string number =
          plan_.levels().size() > 1 ? runtime::concat("level", level, ".") : "";
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

  void forward(const Visit& visit) { forward(visit, 0, 0, own_); }
  /// Where the gradient of this member's own block lies, complete.
  View backward(const BackwardVisit& visit, const View& into) {
    return *backward(visit, 0, 0, own_, [&] { return into; });
  }

 private:
  struct Level {
    Buffers block, part, arrived, home;
    Held came_home;
  };
  Level& at(int level) { return levels_[static_cast<std::size_t>(level)]; }
  int depth() const { return static_cast<int>(levels_.size()); }
  /// The tuple of the outer hops `prefix` and hop `hop` of the level.
  int hops(int level, int prefix, int hop) const { return prefix + hop * plan_.stride(level); }
  int block(int hops) const { return plan_.block_at(ring_.self, hops); }
  std::int64_t rows(int member) const { return ring_.members.rows(member); }
  int channel(int level) const { return plan_.levels()[static_cast<std::size_t>(level)].channel; }
  int rank(int level, int hops) const {
    return ring_.ranks[static_cast<std::size_t>(plan_.moved(ring_.self, level, hops))];
  }
  Held held_at(int level, int prefix, int hop, const Held& held) {
    if (hop == 0) return held;
    const int here = block(hops(level, prefix, hop));
    if (!plan_.travels(here, prefix, level, hop)) return {};
    return at(level).block.at(hop, rows(here));
  }

  /// Sends the block of this hop on and receives the next one, before the compute that hides it.
  void pass(int level, int prefix, int hop, const Held& held) {
    if (hop + 1 >= plan_.size(level)) return;
    const int now = block(hops(level, prefix, hop)), next = block(hops(level, prefix, hop + 1));
    std::vector<Message> sends, receives;
    if (plan_.travels(now, prefix, level, hop + 1))
      sends.push_back({rank(level, 1), {*held_at(level, prefix, hop, held)}, now});
    if (const Held arriving = held_at(level, prefix, hop + 1, held))
      receives.push_back({rank(level, -1), {*arriving}, next});
    ring_.builder.transfer(channel(level), std::move(sends), std::move(receives));
  }

  void forward(const Visit& visit, int level, int prefix, const Held& held) {
    if (level == depth()) {
      if (held) visit(*held, block(prefix));
      return;
    }
    for (int hop = 0; hop < plan_.size(level); ++hop) {
      pass(level, prefix, hop, held);
      forward(visit, level + 1, hops(level, prefix, hop), held_at(level, prefix, hop, held));
    }
  }

  /// The gradient of the held block by all members below this position of the outer levels.
  Held backward(const BackwardVisit& visit, int level, int prefix, const Held& held,
                const Into& into) {
    if (level == depth()) return held && visit(*held, block(prefix), into) ? Held(into()) : Held();
    Held own;
    for (int hop = 0; hop < plan_.size(level); ++hop) {
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
    if (plan_.last(block(prefix), prefix, level) == 0) return own;
    const View home = *at(level).came_home;
    if (!own) return home;
    ring_.builder.accumulate(home, *own);
    return own;
  }

  /// Adds what arrived for the block of this hop to this member's part, and sends the sum on, or
  /// home.
  void hand_on(int level, int prefix, int hop, Held sum) {
    const int visited = block(hops(level, prefix, hop));
    if (plan_.accumulated(visited, prefix, level, hop - 1) &&
        plan_.travels(visited, prefix, level, hop)) {
      const View arrived = at(level).arrived.at(hop, rows(visited));
      if (sum) {
        ring_.builder.accumulate(arrived, *sum);
      } else {
        sum = arrived;
      }
    }
    std::vector<Message> sends, receives;
    const int last = plan_.last(visited, prefix, level);
    if (sum) sends.push_back(gradient(rank(level, hop < last ? 1 : -hop), *sum, visited));
    if (hop + 1 < plan_.size(level)) {  // what the member before passes on after this hop
      const int next = block(hops(level, prefix, hop + 1));
      if (plan_.accumulated(next, prefix, level, hop) &&
          plan_.travels(next, prefix, level, hop + 1)) {
        receives.push_back(
            gradient(rank(level, -1), at(level).arrived.at(hop + 1, rows(next)), next));
      }
    }
    const int own = block(prefix);
    if (hop == plan_.last(own, prefix, level)) {
      // After the last hop a part buffer is free; a block that turns back earlier needs another.
      Level& l = at(level);
      l.came_home = (hop + 1 == plan_.size(level) ? l.part : l.home).at(hop + 1, rows(own));
      receives.push_back(gradient(rank(level, hop), *l.came_home, own));
    }
    ring_.builder.transfer(channel(level), std::move(sends), std::move(receives));
  }

  Message gradient(int peer, const View& view, int block) const {
    return {peer, {view}, ring_.members.size() + block, ring_.wire_dtype};
  }

  const RingMember& ring_;
  const RingPlan& plan_;
  const View own_;
  std::vector<Level> levels_;
};

bool values_alone(const RingMember& ring) { return ring.plan.circulating() == Circulating::values; }

}  // namespace

void ring_forward(const RingMember& ring, const ForwardViews& views) {
  Builder& builder = ring.builder;
  const bool apart = values_alone(ring);
  Circulation circulation(ring, views.kv, apart ? SlotKind::v : SlotKind::kv, SlotKind::dkv);
  circulation.forward([&](const View& held, int block) {
    builder.set_phase(1);
    const Bands bands = ring.members.bands(ring.self, block);
    const Mode mode = block == ring.self ? Mode::write : Mode::add;
    if (apart) {
      builder.attend(views.q, ring.keys(block), bands, views.out, mode, held);
    } else {
      builder.attend(views.q, held, bands, views.out, mode);
    }
  });
}

void ring_backward(const RingMember& ring, const BackwardViews& views) {
  Builder& builder = ring.builder;
  const bool queries = ring.plan.circulating() == Circulating::queries, apart = values_alone(ring);
  const SlotKind kind = queries ? SlotKind::q_bundle : apart ? SlotKind::v : SlotKind::kv;
  Circulation circulation(ring, queries ? views.q_bundle : views.kv, kind,
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
  circulation.backward(visit, queries ? views.dq : views.dkv);
}

std::function<View(int)> gather_keys(const RingMember& ring, const View& own) {
  std::vector<View> keys(static_cast<std::size_t>(ring.members.size()));
  Circulation circulation(ring, own, SlotKind::k, SlotKind::dkv, ring.members.size());
  circulation.forward(
      [&](const View& held, int block) { keys[static_cast<std::size_t>(block)] = held; });
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

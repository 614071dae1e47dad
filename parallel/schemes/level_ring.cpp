#include "parallel/schemes/level_ring.h"

#include <algorithm>
#include <array>
#include <utility>

#include "parallel/schemes/buffers.h"
#include "runtime/error.h"

namespace longhaul::parallel {

namespace {

/// The recursion over levels. A block that is at this member at the end of `path` is `held`; none
/// where it did not come that way, as nobody from here on sees it.
class Circulation {
 public:
  using Held = std::optional<View>;
  using Into = std::function<View()>;
  /// Attends, or takes note of, a block where it is. At home first.
  using Visit = std::function<void(const View& held, int block)>;
  /// Whether it wrote the block's gradient to into(); at home it always does.
  using BackwardVisit = std::function<bool(const View& held, int block, const Into& into)>;

  Circulation(const RingMember& ring, const View& own, SlotKind block_kind, SlotKind gradient_kind,
              int block_buffers = 2)
      : ring_(ring), plan_(ring.plan), own_(own) {
    const std::int64_t others = ring.members.longest(ring.self), mine = rows(ring.self),
                       any = std::max(others, mine);
    for (int level = 0; level < plan_.depth(); ++level) {
      // One level has plain names; of several, each has its number.
      const std::string number =
          plan_.depth() > 1 ? runtime::concat("level", level, ".") : std::string();
      const auto lane = [&](const std::string& way) {
        const auto buffers = [&](const char* what, SlotKind kind, std::int64_t rows, int count) {
          return Buffers(ring.builder, runtime::concat(ring.prefix, number, way, name(kind), what),
                         kind, rows, own.heads(), count);
        };
        return Lane{buffers("", block_kind, others, block_buffers),
                    buffers("_part", gradient_kind, any, 2),
                    buffers("_arrived", gradient_kind, others, 2),
                    buffers("_home", gradient_kind, level == 0 ? mine : any, 1),
                    {}};
      };
      lanes_.push_back({lane(""), lane("back.")});
    }
  }

  void forward(const Visit& visit) { forward(visit, 0, {}, own_); }
  /// The gradient of this member's own block, into `into`.
  void backward(const BackwardVisit& visit, const View& into) {
    backward(visit, 0, {}, own_, [&] { return into; });
  }

 private:
  /// The buffers of one way round one level.
  struct Lane {
    Buffers block, part, arrived, home;
    Held came_home;
  };
  /// Where a block is: hop `hop` of a level on one way, after the path of the outer ones.
  struct Place {
    Path path;
    int level;
    Way way;
    int hop;
    Place after(int hops) const { return {path, level, way, hop + hops}; }
  };

  Lane& lane(const Place& at) {
    return lanes_[static_cast<std::size_t>(at.level)][at.way == Way::onward ? 0 : 1];
  }
  Path path_to(const Place& at) const { return plan_.after(at.path, at.level, at.way, at.hop); }
  /// The block that is here at the end of a path.
  int block(const Path& path) const { return plan_.block_at(ring_.self, path.tuple); }
  int block(const Place& at) const { return block(path_to(at)); }
  int last(int block, const Place& at) const {
    return plan_.last(block, at.path, at.level, at.way);
  }
  bool accumulated(int block, const Place& at) const {
    return plan_.accumulated(block, at.path, at.level, at.way, at.hop);
  }
  std::int64_t rows(int member) const { return ring_.members.rows(member); }
  int next_rank(const Place& at, int hops = 1) const {
    return ring_.ranks[static_cast<std::size_t>(plan_.moved(ring_.self, at.level, at.way, hops))];
  }
  int rank_before(const Place& at, int hops = 1) const {
    const Way opposite = at.way == Way::onward ? Way::back : Way::onward;
    return next_rank({at.path, at.level, opposite, at.hop}, hops);
  }
  Held held_at(const Place& at, const Held& home) {
    if (at.hop == 0) return home;
    const int here = block(at);
    if (at.hop > last(here, at)) return {};
    return lane(at).block.at(at.hop, rows(here));
  }

  /// Sends the block that is here on and receives the next one, before the compute that hides it.
  void pass(const Place& at, const Held& home) {
    const Place then = at.after(1);
    if (then.hop > plan_.longest(at.level, at.way)) return;
    const int now = block(at), next = block(then);
    std::vector<Message> sends, receives;
    if (then.hop <= last(now, at)) sends.push_back({next_rank(at), {*held_at(at, home)}, now});
    if (const Held arriving = held_at(then, home))
      receives.push_back({rank_before(at), {*arriving}, next});
    ring_.builder.transfer(plan_.channel(at.level), std::move(sends), std::move(receives));
  }

  /// `here(place)` at home, then at every hop onward and every hop back of a level.
  template <class Here>
  void go_round(const Path& path, int level, const Held& held, const Here& here) {
    for (const Way way : kWays) pass({path, level, way, 0}, held);
    here(Place{path, level, Way::onward, 0});
    for (const Way way : kWays) {
      for (int hop = 1; hop <= plan_.longest(level, way); ++hop) {
        const Place at{path, level, way, hop};
        pass(at, held);
        here(at);
      }
    }
  }

  void forward(const Visit& visit, int level, const Path& path, const Held& held) {
    if (level == plan_.depth()) {
      if (held) visit(*held, block(path));
      return;
    }
    go_round(path, level, held,
             [&](const Place& at) { forward(visit, level + 1, path_to(at), held_at(at, held)); });
  }

  /// The gradient of the held block by all members below this position of the outer levels.
  Held backward(const BackwardVisit& visit, int level, const Path& path, const Held& held,
                const Into& into) {
    if (level == plan_.depth()) {
      const bool wrote = held && visit(*held, block(path), into);
      return wrote ? Held(into()) : Held();
    }
    Held own;
    go_round(path, level, held, [&](const Place& at) {
      const Held here = held_at(at, held);
      if (at.hop == 0) {
        own = backward(visit, level + 1, path_to(at), here, into);
      } else {
        const Into part = [&] { return lane(at).part.at(at.hop, rows(block(at))); };
        hand_on(at, backward(visit, level + 1, path_to(at), here, part));
      }
    });
    // What came home joins what stayed there.
    for (const Way way : kWays) {
      const Held home = std::exchange(lane({path, level, way, 0}).came_home, {});
      if (home && own) ring_.builder.accumulate(*home, *own);
      if (!own) own = home;
    }
    return own;
  }

  /// Adds what arrived for the block that is here to this member's part, and sends the sum on, or
  /// home.
  void hand_on(const Place& at, Held sum) {
    const int visited = block(at), last_hop = last(visited, at);
    if (at.hop <= last_hop && accumulated(visited, at.after(-1))) {
      const View arrived = lane(at).arrived.at(at.hop, rows(visited));
      if (sum) {
        ring_.builder.accumulate(arrived, *sum);
      } else {
        sum = arrived;
      }
    }
    std::vector<Message> sends, receives;
    if (sum) {
      sends.push_back(
          gradient(at.hop < last_hop ? next_rank(at) : rank_before(at, at.hop), *sum, visited));
    }
    const Place then = at.after(1);
    if (then.hop <= plan_.longest(at.level, at.way)) {  // what the member before passes on
      const int next = block(then);
      if (then.hop <= last(next, then) && accumulated(next, at)) {
        receives.push_back(
            gradient(rank_before(at), lane(at).arrived.at(then.hop, rows(next)), next));
      }
    }
    const int own = block(at.path);
    if (at.hop == last(own, at)) {
      // After the ring's last hop a part buffer is free; a block that turns earlier needs another.
      Lane& l = lane(at);
      const bool ends = at.hop == plan_.longest(at.level, at.way);
      l.came_home = (ends ? l.part : l.home).at(then.hop, rows(own));
      receives.push_back(gradient(next_rank(at, at.hop), *l.came_home, own));
    }
    ring_.builder.transfer(plan_.channel(at.level), std::move(sends), std::move(receives));
  }

  Message gradient(int peer, const View& view, int block) const {
    return {peer, {view}, ring_.members.size() + block, ring_.wire_dtype};
  }

  const RingMember& ring_;
  const RingPlan& plan_;
  const View own_;
  std::vector<std::array<Lane, 2>> lanes_;  // by level: onward, back
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

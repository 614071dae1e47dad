#include "parallel/schemes/level_ring.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "parallel/schemes/buffers.h"
#include "runtime/error.h"

namespace longhaul::parallel {

namespace {

/// The recursion over levels. A block that is at this member at the end of `path` is `held`; none
/// where it did not come that way, as nobody from here on sees it.
class Circulation {
 public:
  /// Of the blocks that come by: two in turn, or all, for good.
  enum class Keeping : unsigned char { two, all };
  using MaybeView = std::optional<View>;
  using Destination = std::function<View()>;
  /// Attends, or takes note of, a block where it is. At home first.
  using Visit = std::function<void(const View& held, int block)>;
  /// Whether it wrote the block's gradient to into(); at home it always does.
  using BackwardVisit = std::function<bool(const View& held, int block, const Destination& into)>;

  Circulation(const RingMember& ring, const View& own, const Record& block_record,
              const Record& gradient_record, Keeping keeping = Keeping::two)
      : ring_(ring),
        plan_(ring.plan),
        own_(own),
        block_record_(block_record),
        lends_(ring.lends && ring.plan.depth() == 1 && keeping == Keeping::two) {
    const std::int64_t others = ring.members.longest(ring.self), mine = rows(ring.self),
                       any = std::max(others, mine);
    for (int level = 0; level < plan_.depth(); ++level) {
      // One level has plain names; of several, each has its number.
      const std::string number =
          plan_.depth() > 1 ? runtime::concat("level", level, ".") : std::string();
      const auto one_way = [&](const std::string& heading) {
        const auto buffers = [&](const char* what, const Record& record, std::int64_t rows,
                                 int count) {
          return Buffers(ring.builder,
                         runtime::concat(ring.prefix, number, heading, record.kind, what), record,
                         rows, own.heads(), count);
        };
        return RingBuffers{
            buffers("", block_record, others, keeping == Keeping::all ? ring.members.size() : 2),
            buffers("_part", gradient_record, any, 2),
            buffers("_arrived", gradient_record, others, 2),
            buffers("_home", gradient_record, level == 0 ? mine : any, 1),
            {}};
      };
      buffers_.push_back({one_way(""), one_way("back.")});
    }
  }

  void forward(const Visit& visit) { forward(visit, 0, {}, own_); }
  /// The gradient of this member's own block, into `into`.
  void backward(const BackwardVisit& visit, const View& into) {
    backward(visit, 0, {}, own_, [&] { return into; });
  }

 private:
  /// The buffers of one heading round one level.
  struct RingBuffers {
    Buffers block, part, arrived, home;
    MaybeView came_home;
  };
  /// Where a block is: hop `hop` of a level on one heading, after the path of the outer ones.
  struct Hop {
    Path path;
    int level;
    Heading heading;
    int hop;
    Hop after(int hops) const { return {path, level, heading, hop + hops}; }
  };

  RingBuffers& buffers_at(const Hop& at) {
    return buffers_[static_cast<std::size_t>(at.level)][at.heading == Heading::onward ? 0 : 1];
  }
  Path path_to(const Hop& at) const { return plan_.after(at.path, at.level, at.heading, at.hop); }
  /// The block that is here at the end of a path.
  int block(const Path& path) const { return plan_.block_at(ring_.self, path.tuple); }
  int block(const Hop& at) const { return block(path_to(at)); }
  int last(int block, const Hop& at) const {
    return plan_.last(block, at.path, at.level, at.heading);
  }
  bool accumulated(int block, const Hop& at) const {
    return plan_.accumulated(block, at.path, at.level, at.heading, at.hop);
  }
  std::int64_t rows(int member) const { return ring_.members.rows(member); }
  int next_rank(const Hop& at, int hops = 1) const {
    return ring_
        .ranks[static_cast<std::size_t>(plan_.moved(ring_.self, at.level, at.heading, hops))];
  }
  int rank_before(const Hop& at, int hops = 1) const {
    const Heading opposite = at.heading == Heading::onward ? Heading::back : Heading::onward;
    return next_rank({at.path, at.level, opposite, at.hop}, hops);
  }
  MaybeView held_at(const Hop& at, const MaybeView& home) {
    if (at.hop == 0) return home;
    const int here = block(at);
    if (at.hop > last(here, at)) return {};
    if (lends_) return borrowed(at, here);
    return buffers_at(at).block.at(at.hop, rows(here));
  }
  /// What is lent is read where it lies: every hop has a slot of its own, which takes no memory.
  View borrowed(const Hop& at, int here) {
    auto& slots = borrowed_[at.heading == Heading::onward ? 0 : 1];
    if (const auto found = slots.find(at.hop); found != slots.end()) return found->second;
    const char* heading = at.heading == Heading::onward ? "" : "back.";
    const View view = ring_.builder.add_slot(
        {runtime::concat(ring_.prefix, heading, block_record_.kind, "_lent", at.hop), block_record_,
         rows(here), own_.heads(), Role::borrowed});
    return slots.emplace(at.hop, view).first->second;
  }
  Passing passing() const { return lends_ ? Passing::lend : Passing::copy; }

  /// Gives back what was lent for the hops of a heading, the last one first: who lent a block on
  /// has it back before.
  void give_back(const Hop& home, const MaybeView& held) {
    for (int hop = plan_.longest(home.level, home.heading); hop > 0; --hop) {
      const Hop at = home.after(hop), before = home.after(hop - 1);
      const int here = block(at), there = block(before);
      std::vector<Message> sends, receives;
      if (const MaybeView view = held_at(at, held))
        sends.push_back({rank_before(before), {*view}, here, {}, Passing::give_back});
      if (hop <= last(there, before))
        receives.push_back(
            {next_rank(before), {*held_at(before, held)}, there, {}, Passing::give_back});
      ring_.builder.transfer(plan_.channel(home.level), std::move(sends), std::move(receives));
    }
  }

  /// Sends the block that is here on and receives the next one, before the compute that hides it.
  void pass(const Hop& at, const MaybeView& home) {
    const Hop then = at.after(1);
    if (then.hop > plan_.longest(at.level, at.heading)) return;
    const int now = block(at), next = block(then);
    std::vector<Message> sends, receives;
    if (then.hop <= last(now, at))
      sends.push_back({next_rank(at), {*held_at(at, home)}, now, {}, passing()});
    if (const MaybeView arriving = held_at(then, home))
      receives.push_back({rank_before(at), {*arriving}, next, {}, passing()});
    ring_.builder.transfer(plan_.channel(at.level), std::move(sends), std::move(receives));
  }

  /// `here(place)` at home, then at every hop onward and every hop back of a level.
  template <class Here>
  void go_round(const Path& path, int level, const MaybeView& held, const Here& here) {
    for (const Heading heading : kHeadings) pass({path, level, heading, 0}, held);
    here(Hop{path, level, Heading::onward, 0});
    for (const Heading heading : kHeadings) {
      for (int hop = 1; hop <= plan_.longest(level, heading); ++hop) {
        const Hop at{path, level, heading, hop};
        pass(at, held);
        here(at);
      }
    }
    if (!lends_) return;
    for (const Heading heading : kHeadings) give_back({path, level, heading, 0}, held);
  }

  void forward(const Visit& visit, int level, const Path& path, const MaybeView& held) {
    if (level == plan_.depth()) {
      if (held) visit(*held, block(path));
      return;
    }
    go_round(path, level, held,
             [&](const Hop& at) { forward(visit, level + 1, path_to(at), held_at(at, held)); });
  }

  /// The gradient of the held block by all members below this position of the outer levels.
  MaybeView backward(const BackwardVisit& visit, int level, const Path& path, const MaybeView& held,
                     const Destination& into) {
    if (level == plan_.depth()) {
      const bool wrote = held && visit(*held, block(path), into);
      return wrote ? MaybeView(into()) : MaybeView();
    }
    MaybeView own;
    go_round(path, level, held, [&](const Hop& at) {
      const MaybeView here = held_at(at, held);
      if (at.hop == 0) {
        own = backward(visit, level + 1, path_to(at), here, into);
      } else {
        const Destination part = [&] { return buffers_at(at).part.at(at.hop, rows(block(at))); };
        hand_on(at, backward(visit, level + 1, path_to(at), here, part));
      }
    });
    // What came home joins what stayed there.
    for (const Heading heading : kHeadings) {
      const MaybeView home = std::exchange(buffers_at({path, level, heading, 0}).came_home, {});
      if (home && own) ring_.builder.accumulate(*home, *own);
      if (!own) own = home;
    }
    return own;
  }

  /// Adds what arrived for the block that is here to this member's part, and sends the sum on, or
  /// home.
  void hand_on(const Hop& at, MaybeView sum) {
    const int visited = block(at), last_hop = last(visited, at);
    if (at.hop <= last_hop && accumulated(visited, at.after(-1))) {
      const View arrived = buffers_at(at).arrived.at(at.hop, rows(visited));
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
    const Hop then = at.after(1);
    if (then.hop <= plan_.longest(at.level, at.heading)) {  // what the member before passes on
      const int next = block(then);
      if (then.hop <= last(next, then) && accumulated(next, at)) {
        receives.push_back(
            gradient(rank_before(at), buffers_at(at).arrived.at(then.hop, rows(next)), next));
      }
    }
    const int own = block(at.path);
    if (at.hop == last(own, at)) {
      // After the ring's last hop a part buffer is free; a block that turns earlier needs another.
      RingBuffers& l = buffers_at(at);
      const bool ends = at.hop == plan_.longest(at.level, at.heading);
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
  const Record block_record_;
  const bool lends_;
  std::array<std::map<int, View>, 2> borrowed_;      // by heading, then hop
  std::vector<std::array<RingBuffers, 2>> buffers_;  // by level: onward, back
};

bool values_alone(const RingMember& ring) { return ring.plan.circulating() == Circulating::values; }

}  // namespace

void ring_forward(const RingMember& ring, const ForwardViews& views) {
  Builder& builder = ring.builder;
  const bool apart = values_alone(ring);
  const AttentionRecords& records = ring.records;
  Circulation circulation(ring, views.kv, apart ? records.v : records.kv, records.dkv);
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
  const AttentionRecords& records = ring.records;
  const Record& block_record = queries ? records.q_bundle : apart ? records.v : records.kv;
  Circulation circulation(ring, queries ? views.q_bundle : views.kv, block_record,
                          queries ? records.dq : records.dkv);
  const auto visit = [&](const View& held, int block, const Circulation::Destination& into) {
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
  Circulation circulation(ring, own, ring.records.k, ring.records.dkv, Circulation::Keeping::all);
  circulation.forward(
      [&](const View& held, int block) { keys[static_cast<std::size_t>(block)] = held; });
  return [keys](int member) { return keys[static_cast<std::size_t>(member)]; };
}

Circulating cheaper_backward(const Shapes& shapes, std::optional<runtime::DType> wire_dtype) {
  const AttentionRecords records(shapes);
  const std::int64_t keys =
      shapes.kv_heads * (records.kv.cell_bytes() + records.dkv.cell_bytes(wire_dtype));
  const std::int64_t queries =
      shapes.heads * (records.q_bundle.cell_bytes() + records.dq.cell_bytes(wire_dtype));
  return queries < keys ? Circulating::queries : Circulating::keys;
}

}  // namespace longhaul::parallel

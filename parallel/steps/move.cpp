#include "parallel/steps/move.h"

#include <algorithm>
#include <tuple>

#include "attention/block.h"
#include "parallel/frame.h"
#include "parallel/schedule.h"
#include "parallel/verifier/form.h"
#include "parallel/verifier/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::concat;
using runtime::ConstTensorView;

const char* name(TransferKind kind) {
  switch (kind) {
    case TransferKind::none:
      return "none";
    case TransferKind::all_gather:
      return "all_gather";
    case TransferKind::all_to_all:
      return "all_to_all";
  }
  return "unknown";
}

std::int64_t message_bytes(const Message& message, const Program& program) {
  std::int64_t bytes = 0;
  if (message.passing != Passing::copy) return 0;
  for (const View& view : message.views) {
    const Record& record = program.slot(view).record;
    bytes += view.rows() * view.heads() * record.cell_bytes(message.wire_dtype);
  }
  return bytes;
}

bool same_stretch(const View& before, const View& view) {
  return before.slot == view.slot && before.head_begin == view.head_begin &&
         before.head_end == view.head_end;
}

std::vector<int> group_of(const Transfer& transfer, int rank) {
  std::vector<int> group{rank};
  for (const auto* side : {&transfer.sends, &transfer.receives}) {
    for (const Message& message : *side) group.push_back(message.peer);
  }
  std::ranges::sort(group);
  const auto repeated = std::ranges::unique(group);
  group.erase(repeated.begin(), repeated.end());
  return group;
}

// ---- accesses

namespace {
std::vector<Access> pair_accesses(const std::vector<View>& src, const std::vector<View>& dst) {
  std::vector<Access> all;
  all.reserve(src.size() + dst.size());
  for (const View& view : src) all.push_back({view, false});
  for (const View& view : dst) all.push_back({view, true});
  return all;
}
}  // namespace

std::vector<Access> accesses(const Accumulate& step) { return pair_accesses(step.src, step.dst); }
std::vector<Access> accesses(const Copy& step) { return pair_accesses(step.src, step.dst); }

std::vector<Access> accesses(const Transfer& step) {
  std::vector<Access> all;
  all.reserve(step.sends.size() + step.receives.size());
  // To give back ends what the borrower may read, and is awaited by whoever would write there.
  for (const Message& message : step.sends) {
    for (const View& view : message.views)
      all.push_back({view, message.passing == Passing::give_back});
  }
  for (const Message& message : step.receives) {
    for (const View& view : message.views)
      all.push_back({view, message.passing != Passing::give_back});
  }
  return all;
}

// ---- form

namespace {

void check_pair(const View& src, const View& dst, const Form& form) {
  form.require_same_record(src, dst);
  form.require_same_extent(src, dst);
}

/// Views of the same rows follow one another by their heads: of those it is enough to compare
/// neighbours. Others overlap none that begins at their end or later.
void check_disjoint(std::vector<View> views, const char* overlapping, const Form& form) {
  std::erase_if(views, [](const View& v) { return v.empty(); });
  const auto rows = [](const View& v) { return std::tie(v.slot, v.row_begin, v.row_end); };
  std::ranges::sort(views, [&](const View& a, const View& b) {
    return std::tuple_cat(rows(a), std::tie(a.head_begin)) <
           std::tuple_cat(rows(b), std::tie(b.head_begin));
  });
  auto next = views.begin();  // behind those of the same rows
  for (auto one = views.begin(); one != views.end(); ++one) {
    if (one == next)
      next = std::find_if(one, views.end(), [&](const View& v) { return rows(v) != rows(*one); });
    const auto apart = [&](const View& other) {
      form.require(!overlaps(*one, other), overlapping);
    };
    if (one + 1 != next) apart(one[1]);
    for (auto other = next;
         other != views.end() && other->slot == one->slot && other->row_begin < one->row_end;
         ++other)
      apart(*other);
  }
}

/// None of `read` overlaps one of `written`.
void require_apart(std::vector<View> read, std::vector<View> written, const char* overlapping,
                   const Form& form) {
  const auto by_rows = [](const View& v) { return std::tie(v.slot, v.row_begin); };
  std::erase_if(written, &View::empty);
  std::ranges::sort(written, {}, by_rows);
  std::int64_t longest = 0;
  for (const View& view : written) longest = std::max(longest, view.rows());
  for (const View& view : read) {
    if (view.empty()) continue;
    const std::int64_t from = view.row_begin - longest;
    for (auto at = std::ranges::lower_bound(written, std::tie(view.slot, from), {}, by_rows);
         at != written.end() && at->slot == view.slot && at->row_begin < view.row_end; ++at)
      form.require(!overlaps(view, *at), overlapping);
  }
}

/// What one rank's program shows of the rule at TransferKind.
void check_collective(const Transfer& transfer, const Form& form) {
  const int rank = form.program().rank;
  const std::size_t others = group_of(transfer, rank).size() - 1;
  std::optional<std::int64_t> bytes;
  for (const auto* side : {&transfer.sends, &transfer.receives}) {
    std::vector<int> peers;
    for (const Message& message : *side) {
      peers.push_back(message.peer);
      if (message.peer == rank) continue;
      const std::int64_t own = message_bytes(message, form.program());
      form.require(own == bytes.value_or(own), [&] {
        return concat("is marked ", name(transfer.kind), " and has messages of ", *bytes, " and ",
                      own, " bytes");
      });
      bytes = own;
    }
    std::ranges::sort(peers);
    form.require(
        std::ranges::adjacent_find(peers) == peers.end() &&
            peers.size() - static_cast<std::size_t>(std::ranges::count(peers, rank)) == others,
        [&] {
          return concat("is marked ", name(transfer.kind),
                        " and does not exchange one message with every member");
        });
  }
  if (transfer.kind != TransferKind::all_gather) return;
  for (const Message& message : transfer.sends) {
    form.require(message.views == transfer.sends.front().views,
                 "is marked all_gather and sends different views");
  }
}

}  // namespace

void check(const Accumulate& step, const Form& form) {
  form.require(step.src.size() == step.dst.size(), "has different numbers of views on its sides");
  for (std::size_t i = 0; i < step.dst.size(); ++i) {
    form.require(form.record(step.dst[i]).accumulates(),
                 "accumulates into something that is no accumulator");
    check_pair(step.src[i], step.dst[i], form);
  }
  check_disjoint(step.dst, "destinations overlap", form);
  require_apart(step.src, step.dst, "source and destination overlap", form);
}

void check(const Copy& step, const Form& form) {
  form.require(step.src.size() == step.dst.size(), "has different numbers of views on its sides");
  for (std::size_t i = 0; i < step.dst.size(); ++i) check_pair(step.src[i], step.dst[i], form);
  check_disjoint(step.dst, "destinations overlap", form);
  require_apart(step.src, step.dst, "source and destination overlap", form);
}

/// Of one side of a loan.
void check_loan(const Message& message, bool sent, TransferKind kind, const Form& form) {
  form.require(message.views.size() == 1 && !message.wire_dtype && kind == TransferKind::none,
               "lends other than one view, cast or in a collective");
  const View& view = message.views.front();
  const Slot& slot = form.program().slot(view);
  const bool borrows = sent == (message.passing == Passing::give_back);
  form.require(!borrows || (slot.role == Role::borrowed && view.rows() == slot.rows &&
                            view.heads() == slot.heads),
               [&] { return concat(show(form.program(), view), " is no whole borrowed slot"); });
}

void check(const Transfer& step, const Form& form) {
  for (const auto* side : {&step.sends, &step.receives}) {
    for (const Message& message : *side) {
      form.require(message.peer >= 0 && message.peer < form.ranks(),
                   [&] { return concat("no rank ", message.peer); });
      if (message.passing != Passing::copy)
        check_loan(message, side == &step.sends, step.kind, form);
      for (const View& view : message.views) {
        form.require(
            message.passing != Passing::copy || form.program().slot(view).role != Role::borrowed,
            [&] { return concat("copies ", show(form.program(), view), ", which is borrowed"); });
      }
      for (const View& view : message.views) {
        form.require(!message.wire_dtype || form.record(view).combine == Combine::add,
                     "only what adds may be cast on the wire");
      }
    }
  }
  std::vector<View> sent, received;
  for (const Message& message : step.sends)
    sent.insert(sent.end(), message.views.begin(), message.views.end());
  for (const Message& message : step.receives)
    received.insert(received.end(), message.views.begin(), message.views.end());
  check_disjoint(received, "receives of a group overlap", form);
  require_apart(sent, received, "a group sends what it receives into", form);
  if (step.kind != TransferKind::none) check_collective(step, form);
}

// ---- rehearsal

void rehearse(const Accumulate& step, Shadow& shadow) {
  for (std::size_t i = 0; i < step.dst.size(); ++i) {
    shadow.require_defined(step.src[i]);
    shadow.prepare_accumulator(step.dst[i], step.src[i], attention::Mode::add);
    const ShadowCells from = shadow.cells(step.src[i]), to = shadow.cells(step.dst[i]);
    for (std::int64_t row = 0; row < to.rows; ++row) {
      for (int cell = 0; cell < to.per_view; ++cell) to.sum(row, cell) += from.sum(row, cell);
    }
  }
}

void rehearse(const Copy& step, Shadow& shadow) {
  for (std::size_t i = 0; i < step.dst.size(); ++i)
    shadow.receive(step.dst[i], shadow, step.src[i]);
}

void rehearse(const Transfer&, Shadow&) {}

// ---- running

namespace {

using runtime::RowMove;
using runtime::RowMoves;

/// All rows of a view's slot, at its heads.
View all_rows(const View& view, const Program& program) {
  return {view.slot, 0, program.slot(view).rows, view.head_begin, view.head_end};
}

/// Rows of a view: all of them, or those of a list.
struct Rows {
  View view;
  std::shared_ptr<const RowMoves> moves = {};
  std::int64_t table = 0;
  runtime::RowList list(const Frame& frame) const { return {moves, frame.table(table)}; }
};

/// A stretch of a message: its rows are those of its views, one after another.
struct MessageStretch {
  View first;                  ///< of its views
  std::vector<RowMove> moves;  ///< from slot row to row of the stretch, neighbours joined
  std::int64_t rows = 0;
  /// Whether its rows and heads lie together in a slot.
  bool contiguous(const Program& program) const {
    return moves.size() == 1 && (first.heads() == program.slot(first).heads || rows == 1);
  }
};
std::vector<MessageStretch> stretches_of(const Message& message) {
  std::vector<MessageStretch> stretches;
  for (std::size_t v = 0; v < message.views.size(); ++v) {
    const View& view = message.views[v];
    if (v == 0 || !same_stretch(message.views[v - 1], view)) stretches.push_back({view, {}});
    MessageStretch& stretch = stretches.back();
    if (view.rows() == 0) continue;
    if (!stretch.moves.empty() &&
        stretch.moves.back().from + stretch.moves.back().count == view.row_begin) {
      stretch.moves.back().count += view.rows();
    } else {
      stretch.moves.push_back({view.row_begin, stretch.rows, view.rows()});
    }
    stretch.rows += view.rows();
  }
  std::erase_if(stretches, [](const MessageStretch& stretch) {
    return stretch.rows == 0 || stretch.first.heads() == 0;
  });
  return stretches;
}

/// Bytes that a message stages on one side.
std::int64_t staged_bytes(const Message& message, const Program& program) {
  std::int64_t bytes = 0;
  if (message.passing != Passing::copy) return 0;
  for (const MessageStretch& stretch : stretches_of(message)) {
    const Record& record = program.slot(stretch.first).record;
    const std::int64_t sent =
        stretch.rows * stretch.first.heads() * record.cell_bytes(message.wire_dtype);
    const std::int64_t held = stretch.rows * stretch.first.heads() * record.cell_bytes();
    if (!stretch.contiguous(program) || sent != held) bytes += sent;
  }
  return bytes;
}

std::int64_t parts_of(const Message& message, const Program& program) {
  std::int64_t parts = 0;
  if (message.passing != Passing::copy) return 0;
  for (const MessageStretch& stretch : stretches_of(message))
    parts += std::ssize(program.slot(stretch.first).record.fields);
  return parts;
}

class PreparedAccumulate final : public PreparedStep {
 public:
  PreparedAccumulate(const Accumulate& step, Preparation& with) {
    std::vector<RowMove> moves;
    for (std::size_t i = 0; i < step.dst.size(); ++i) {
      const View &src = step.src[i], &dst = step.dst[i];
      const bool merges = with.record(dst).combine == Combine::merge;
      const bool first = i == 0 || !same_stretch(step.src[i - 1], src) ||
                         !same_stretch(step.dst[i - 1], dst) || merges;
      if (first) moves.clear();
      moves.push_back({src.row_begin, dst.row_begin, dst.rows()});
      const bool last = i + 1 == step.dst.size() || !same_stretch(src, step.src[i + 1]) ||
                        !same_stretch(dst, step.dst[i + 1]) || merges;
      if (last) sums_.push_back(sum(src, dst, moves, merges, with));
    }
  }
  void run(const Frame& frame) const override {
    for (const Sum& sum : sums_) {
      const auto src = frame.inputs(sum.src);
      const auto dst = frame.outputs(sum.dst.view);
      if (sum.merges) {
        attention::merge(src[0], src[1], dst[0], dst[1], frame.compute());
        continue;
      }
      for (std::size_t f = 0; f < dst.size(); ++f) {
        if (sum.dst.moves == nullptr) {
          runtime::accumulate(src[f], dst[f], frame.compute());
        } else {
          runtime::accumulate_rows(src[f], dst[f], sum.dst.list(frame), frame.compute());
        }
      }
    }
  }

 private:
  struct Sum {
    View src;
    Rows dst;
    bool merges;
  };
  static Sum sum(const View& src, const View& dst, const std::vector<RowMove>& moves, bool merges,
                 Preparation& with) {
    auto list = std::make_shared<const RowMoves>(moves);
    if (list->entries().size() <= 1) {
      const RowMoves::Entry rows =
          list->entries().empty() ? RowMoves::Entry{} : list->entries().front();
      View from = src, to = dst;
      from.row_begin = rows.from, from.row_end = rows.from + rows.count;
      to.row_begin = rows.to, to.row_end = rows.to + rows.count;
      return {from, {to}, merges};
    }
    const std::int64_t table = with.add_table(list->table());
    return {all_rows(src, with.program()),
            {all_rows(dst, with.program()), std::move(list), table},
            merges};
  }
  std::vector<Sum> sums_;
};

class PreparedCopy final : public PreparedStep {
 public:
  explicit PreparedCopy(const Copy& step) : step_(step) {}
  void run(const Frame& frame) const override {
    for (std::size_t i = 0; i < step_.dst.size(); ++i) {
      const auto src = frame.inputs(step_.src[i]);
      const auto dst = frame.outputs(step_.dst[i]);
      for (std::size_t f = 0; f < dst.size(); ++f) runtime::copy(src[f], dst[f], frame.compute());
    }
  }

 private:
  const Copy& step_;
};

class PreparedTransfer final : public PreparedStep {
 public:
  PreparedTransfer(const Transfer& step, Preparation& with)
      : what_("attention "),
        kind_(step.kind),
        group_(static_cast<int>(group_of(step, with.program().rank).size())) {
    for (const Message& message : step.sends) sends_.push_back(part(message, true, with));
    for (const Message& message : step.receives) receives_.push_back(part(message, false, with));
    const Message* last = !step.receives.empty() ? &step.receives.back()
                          : !step.sends.empty()  ? &step.sends.back()
                                                 : nullptr;
    if (last != nullptr && !last->views.empty())
      what_ += with.program().slot(last->views.back()).name;
  }
  void run(const Frame& frame) const override {
    std::vector<runtime::SendMessage> sends;
    std::vector<runtime::ReceiveMessage> receives;
    sends.reserve(sends_.size());
    receives.reserve(receives_.size());
    for (const Parts& message : sends_) {
      auto& send =
          sends.emplace_back(message.peer, std::vector<runtime::SendPart>(), message.wire_dtype);
      auto& parts = send.parts;
      if (message.passing == Passing::lend) send.lent = frame.lent(message.loan);
      if (message.passing == Passing::give_back) send.lent = {token()};
      for (const Rows& rows : message.stretches) {
        for (const auto& field : frame.inputs(rows.view))
          parts.emplace_back(field, rows.list(frame));
      }
    }
    for (const Parts& message : receives_) {
      auto& receive = receives.emplace_back(message.peer, std::vector<runtime::ReceivePart>(),
                                            message.wire_dtype);
      auto& parts = receive.parts;
      if (message.passing == Passing::lend) receive.borrowed = frame.borrowed(message.loan);
      if (message.passing == Passing::give_back) receive.borrowed = {token()};
      for (const Rows& rows : message.stretches) {
        for (const auto& field : frame.outputs(rows.view))
          parts.emplace_back(field, rows.list(frame));
      }
    }
    const Channel& channel = frame.channel();
    // The kind speaks of a group; a communicator's hint, of all its ranks.
    const auto kind = group_ == channel.communicator->size() ? kind_ : TransferKind::none;
    channel.communicator->exchange_as(kind, std::move(sends), std::move(receives), what_,
                                      channel.stream);
  }

 private:
  struct Parts {
    int peer;
    std::optional<runtime::DType> wire_dtype;
    std::vector<Rows> stretches;
    Passing passing = Passing::copy;
    View loan = {};
  };
  /// What is lent when nothing but the message counts.
  static std::shared_ptr<ConstTensorView> token() { return std::make_shared<ConstTensorView>(); }

  static Parts part(const Message& message, bool sent, Preparation& with) {
    Parts parts{message.peer,
                message.wire_dtype,
                {},
                message.passing,
                message.views.empty() ? View{} : message.views.front()};
    if (message.passing != Passing::copy) return parts;
    for (MessageStretch& stretch : stretches_of(message)) {
      View view = stretch.first;
      if (stretch.moves.size() == 1) {
        view.row_begin = stretch.moves[0].from;
        view.row_end = view.row_begin + stretch.rows;
        parts.stretches.push_back({view});
        continue;
      }
      if (!sent) {  // from rows of the stretch to those of the slot
        for (RowMove& move : stretch.moves) std::swap(move.from, move.to);
      }
      auto list = std::make_shared<const RowMoves>(stretch.moves);
      const std::int64_t table = with.add_table(list->table());
      parts.stretches.push_back({all_rows(view, with.program()), std::move(list), table});
    }
    return parts;
  }

  std::string what_;
  const TransferKind kind_;
  const int group_;  // ranks that take part
  std::vector<Parts> sends_, receives_;
};

}  // namespace

std::unique_ptr<const PreparedStep> prepare(const Accumulate& step, Preparation& with) {
  return std::make_unique<const PreparedAccumulate>(step, with);
}

std::unique_ptr<const PreparedStep> prepare(const Copy& step, Preparation&) {
  return std::make_unique<const PreparedCopy>(step);
}

std::unique_ptr<const PreparedStep> prepare(const Transfer& step, Preparation& with) {
  return std::make_unique<const PreparedTransfer>(step, with);
}

// ---- merging

std::optional<Accumulate> without_merging(const Accumulate&) { return std::nullopt; }
std::optional<Copy> without_merging(const Copy& step) { return step; }
std::optional<Transfer> without_merging(const Transfer& step) { return step; }

// ---- cost

void add_cost(const Accumulate&, const Program&, int, Count&) {}
void add_cost(const Copy&, const Program&, int, Count&) {}

void add_cost(const Transfer& step, const Program& program, int stream, Count& count) {
  runtime::GroupBytes group;
  for (const auto* side : {&step.sends, &step.receives}) {
    for (const Message& message : *side) {
      group.moved += message_bytes(message, program);
      group.staged += staged_bytes(message, program);
      group.parts += parts_of(message, program);
    }
  }
  for (const Message& message : step.sends) {
    if (message.peer == program.rank) continue;
    const std::int64_t bytes = message_bytes(message, program);
    count.sent_bytes += bytes;
    count.sent_to[message.peer] += bytes;
    count.sent_messages += bytes > 0 ? 1 : 0;
    if (step.kind == TransferKind::all_gather) {
      const auto ranks = std::ssize(group_of(step, program.rank));
      group.gathered = ranks * bytes + staged_bytes(message, program);
    }
  }
  runtime::GroupBytes& most = count.exchanged[stream - 1];
  most = {std::max(most.moved, group.moved), std::max(most.staged, group.staged),
          std::max(most.gathered, group.gathered), std::max(most.parts, group.parts)};
}

}  // namespace longhaul::parallel

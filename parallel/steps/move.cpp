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
  for (const View& view : message.views) {
    const Record& record = program.slot(view).record;
    bytes += view.rows() * view.heads() * record.cell_bytes(message.wire_dtype);
  }
  return bytes;
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

std::vector<Access> accesses(const Accumulate& step) {
  return {{step.src, false}, {step.dst, true}};
}

std::vector<Access> accesses(const Copy& step) { return {{step.src, false}, {step.dst, true}}; }

std::vector<Access> accesses(const Transfer& step) {
  std::vector<Access> all;
  all.reserve(step.sends.size() + step.receives.size());
  for (const Message& message : step.sends) {
    for (const View& view : message.views) all.push_back({view, false});
  }
  for (const Message& message : step.receives) {
    for (const View& view : message.views) all.push_back({view, true});
  }
  return all;
}

// ---- form

namespace {

void check_move(const View& src, const View& dst, const Form& form) {
  form.require_same_record(src, dst);
  form.require_same_extent(src, dst);
  form.require(!overlaps(src, dst), "source and destination overlap");
}

/// Views of the same rows follow one another by their heads: of those it is enough to compare
/// neighbours. Others overlap none that begins at their end or later.
void check_disjoint(std::vector<View>& views, const Form& form) {
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
      form.require(!overlaps(*one, other), "receives of a group overlap");
    };
    if (one + 1 != next) apart(one[1]);
    for (auto other = next;
         other != views.end() && other->slot == one->slot && other->row_begin < one->row_end;
         ++other)
      apart(*other);
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
  form.require(form.record(step.dst).accumulates(),
               "accumulates into something that is no accumulator");
  check_move(step.src, step.dst, form);
}

void check(const Copy& step, const Form& form) { check_move(step.src, step.dst, form); }

void check(const Transfer& step, const Form& form) {
  for (const auto* side : {&step.sends, &step.receives}) {
    for (const Message& message : *side) {
      form.require(message.peer >= 0 && message.peer < form.ranks(),
                   [&] { return concat("no rank ", message.peer); });
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
  check_disjoint(received, form);
  std::ranges::sort(sent, {}, &View::slot);
  for (const View& into : received) {
    for (const View& from : std::ranges::equal_range(sent, into.slot, {}, &View::slot))
      form.require(!overlaps(from, into), "a group sends what it receives into");
  }
  if (step.kind != TransferKind::none) check_collective(step, form);
}

// ---- rehearsal

void rehearse(const Accumulate& step, Shadow& shadow) {
  shadow.require_defined(step.src);
  shadow.prepare_accumulator(step.dst, step.src, attention::Mode::add);
  const ShadowCells from = shadow.cells(step.src), to = shadow.cells(step.dst);
  for (std::int64_t row = 0; row < to.rows; ++row) {
    for (int cell = 0; cell < to.per_view; ++cell) to.sum(row, cell) += from.sum(row, cell);
  }
}

void rehearse(const Copy& step, Shadow& shadow) { shadow.receive(step.dst, shadow, step.src); }

void rehearse(const Transfer&, Shadow&) {}

// ---- running

void run(const Accumulate& step, const Frame& frame) {
  const auto src = frame.inputs(step.src);
  const auto dst = frame.outputs(step.dst);
  if (frame.record(step.dst).combine == Combine::merge)
    return attention::merge(src[0], src[1], dst[0], dst[1], frame.compute());
  for (std::size_t f = 0; f < dst.size(); ++f) runtime::accumulate(src[f], dst[f], frame.compute());
}

void run(const Copy& step, const Frame& frame) {
  const auto src = frame.inputs(step.src);
  const auto dst = frame.outputs(step.dst);
  for (std::size_t f = 0; f < dst.size(); ++f) runtime::copy(src[f], dst[f], frame.compute());
}

void run(const Transfer& step, const Frame& frame) {
  std::vector<runtime::SendMessage> sends;
  std::vector<runtime::ReceiveMessage> receives;
  std::string_view what;
  for (const Message& message : step.sends) {
    runtime::SendMessage send{message.peer, {}, message.wire_dtype};
    for (const View& view : message.views) {
      for (const auto& field : frame.inputs(view)) send.views.push_back(field);
      what = frame.slot(view).name;
    }
    sends.push_back(std::move(send));
  }
  for (const Message& message : step.receives) {
    runtime::ReceiveMessage receive{message.peer, {}, message.wire_dtype};
    for (const View& view : message.views) {
      for (const auto& field : frame.outputs(view)) receive.views.push_back(field);
      what = frame.slot(view).name;
    }
    receives.push_back(std::move(receive));
  }
  frame.channel().communicator->exchange(std::move(sends), std::move(receives),
                                         concat("attention ", what), frame.channel().stream);
}

// ---- cost

void add_cost(const Accumulate&, const Program&, Count&) {}
void add_cost(const Copy&, const Program&, Count&) {}

void add_cost(const Transfer& step, const Program& program, Count& count) {
  for (const Message& message : step.sends) {
    if (message.peer == program.rank) continue;
    const std::int64_t bytes = message_bytes(message, program);
    count.sent_bytes += bytes;
    count.sent_to[message.peer] += bytes;
    count.sent_messages += bytes > 0 ? 1 : 0;
  }
}

}  // namespace longhaul::parallel

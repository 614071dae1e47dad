#include "parallel/schedule.h"

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::DType;

template <class... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};
template <class... Visitors>
Overloaded(Visitors...) -> Overloaded<Visitors...>;

constexpr Field kQ[] = {{"q", FieldWidth::dim, true}};
constexpr Field kKv[] = {{"k", FieldWidth::dim, true}, {"v", FieldWidth::value_dim, true}};
constexpr Field kK[] = {{"k", FieldWidth::dim, true}};
constexpr Field kV[] = {{"v", FieldWidth::value_dim, true}};
constexpr Field kBundle[] = {{"q", FieldWidth::dim, true},
                             {"dout", FieldWidth::value_dim, true},
                             {"lse", FieldWidth::one, false},
                             {"delta", FieldWidth::one, false}};
constexpr Field kPartial[] = {{"out", FieldWidth::value_dim, false},
                              {"lse", FieldWidth::one, false}};
constexpr Field kDq[] = {{"dq", FieldWidth::dim, false}};
constexpr Field kDkv[] = {{"dk", FieldWidth::dim, false}, {"dv", FieldWidth::value_dim, false}};

}  // namespace

const char* name(SlotKind kind) {
  switch (kind) {
    case SlotKind::q:
      return "q";
    case SlotKind::kv:
      return "kv";
    case SlotKind::k:
      return "k";
    case SlotKind::v:
      return "v";
    case SlotKind::q_bundle:
      return "q_bundle";
    case SlotKind::partial:
      return "partial";
    case SlotKind::dq:
      return "dq";
    case SlotKind::dkv:
      return "dkv";
  }
  return "unknown";
}

namespace {
std::span<const Field> softmax_fields(SlotKind kind) {
  switch (kind) {
    case SlotKind::q:
      return kQ;
    case SlotKind::kv:
      return kKv;
    case SlotKind::k:
      return kK;
    case SlotKind::v:
      return kV;
    case SlotKind::q_bundle:
      return kBundle;
    case SlotKind::partial:
      return kPartial;
    case SlotKind::dq:
      return kDq;
    case SlotKind::dkv:
      return kDkv;
  }
  return {};
}

}  // namespace

std::span<const Field> fields(SlotKind kind, const Shapes& shapes) {
  const auto all = softmax_fields(kind);
  // LSE and delta come last.
  if (shapes.weighting == attention::Weighting::softmax) return all;
  return kind == SlotKind::partial ? all.first(1) : kind == SlotKind::q_bundle ? all.first(2) : all;
}

bool is_key_side(SlotKind kind) {
  return kind == SlotKind::kv || kind == SlotKind::k || kind == SlotKind::v ||
         kind == SlotKind::dkv;
}

bool is_accumulator(SlotKind kind) {
  return kind == SlotKind::partial || kind == SlotKind::dq || kind == SlotKind::dkv;
}

View rows_of(View view, std::int64_t begin, std::int64_t end) {
  view.row_end = view.row_begin + end;
  view.row_begin += begin;
  return view;
}

View heads_of(View view, int begin, int end) {
  view.head_end = view.head_begin + end;
  view.head_begin += begin;
  return view;
}

std::int64_t width(FieldWidth field_width, const Shapes& shapes) {
  switch (field_width) {
    case FieldWidth::dim:
      return shapes.dim;
    case FieldWidth::value_dim:
      return shapes.value_dim;
    case FieldWidth::one:
      return 1;
  }
  return 0;
}

std::int64_t cell_bytes(SlotKind kind, const Shapes& shapes, std::optional<DType> wire_dtype) {
  std::int64_t bytes = 0;
  for (const Field& field : fields(kind, shapes)) {
    const DType dtype = field.activation ? shapes.activation : wire_dtype.value_or(DType::float32);
    bytes += width(field.width, shapes) * runtime::size_bytes(dtype);
  }
  return bytes;
}

const char* name(const Operation& operation) {
  constexpr const char* kNames[] = {"Attend", "AttendBackward", "Accumulate", "Copy", "Transfer"};
  return kNames[operation.index()];
}

const char* name(Direction direction) {
  return direction == Direction::forward ? "forward" : "backward";
}

std::vector<Access> accesses(const Operation& operation) {
  std::vector<Access> all;
  std::visit(Overloaded{[&](const Attend& a) {
                          all = {{a.q, false}, {a.kv, false}, {a.partial, true}};
                          if (a.v) all.push_back({*a.v, false});
                        },
                        [&](const AttendBackward& a) {
                          all = {{a.q_bundle, false}, {a.kv, false}, {a.dq, true}, {a.dkv, true}};
                          if (a.v) all.push_back({*a.v, false});
                        },
                        [&](const Accumulate& a) {
                          all = {{a.src, false}, {a.dst, true}};
                        },
                        [&](const Copy& c) {
                          all = {{c.src, false}, {c.dst, true}};
                        },
                        [&](const Transfer& t) {
                          all.reserve(t.sends.size() + t.receives.size());
                          for (const Message& m : t.sends) {
                            for (const View& view : m.views) all.push_back({view, false});
                          }
                          for (const Message& m : t.receives) {
                            for (const View& view : m.views) all.push_back({view, true});
                          }
                        }},
             operation);
  return all;
}

std::int64_t slot_bytes(const Slot& slot, const Shapes& shapes) {
  return slot.rows * slot.heads * cell_bytes(slot.kind, shapes);
}

Count count(const Program& program, const Shapes& shapes) {
  Count total;
  for (const Slot& slot : program.slots) {
    if (slot.role == Role::scratch) total.scratch_bytes += slot_bytes(slot, shapes);
  }
  for (const Step& step : program.steps) {
    if (const auto* attend = std::get_if<Attend>(&step.operation)) {
      total.pairs += attention::area(attend->bands) * attend->q.heads();
    } else if (const auto* backward = std::get_if<AttendBackward>(&step.operation)) {
      total.pairs += attention::area(backward->bands) * backward->q_bundle.heads();
    } else if (const auto* transfer = std::get_if<Transfer>(&step.operation)) {
      for (const Message& message : transfer->sends) {
        if (message.peer == program.rank) continue;
        std::int64_t bytes = 0;
        for (const View& view : message.views) {
          const SlotKind kind = program.slots[static_cast<std::size_t>(view.slot)].kind;
          bytes += view.rows() * view.heads() * cell_bytes(kind, shapes, message.wire_dtype);
        }
        total.sent_bytes += bytes;
        total.sent_to[message.peer] += bytes;
        total.sent_messages += bytes > 0 ? 1 : 0;
      }
    }
  }
  return total;
}

LinkBytes link_bytes(const std::map<int, std::int64_t>& sent_to, int rank,
                     std::span<const int> node_of_rank) {
  const auto node = [&](int of) { return node_of_rank[static_cast<std::size_t>(of)]; };
  LinkBytes bytes;
  for (const auto& [peer, sent] : sent_to)
    (node(peer) == node(rank) ? bytes.within_nodes : bytes.between_nodes) += sent;
  return bytes;
}

std::vector<int> nodes_in_order(int ranks, int ranks_per_node) {
  std::vector<int> nodes;
  for (int rank = 0; rank < ranks; ++rank) nodes.push_back(rank / ranks_per_node);
  return nodes;
}

}  // namespace longhaul::parallel

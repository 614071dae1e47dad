#include "parallel/policy.h"

#include "parallel/schemes/level_ring.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using attention::StateRule;
using runtime::concat;
using runtime::counted;

std::vector<std::string> policy_names() { return {"auto"}; }

Expression choose_scheme(const std::string& text, const Shapes& shapes,
                         std::optional<runtime::DType> wire_dtype) {
  if (text != "auto") return parse_scheme(text, policy_names());
  return cheaper_backward(shapes, wire_dtype) == Circulating::queries ? "burst" : "ring";
}

namespace {

/// Most bytes that a rank receives of lasp2 in one direction.
std::int64_t gathered_bytes(const Shapes& shapes, LayoutKind layout, int ranks) {
  const attention::Recurrence& of = shapes.linear->recurrence;
  const std::int64_t state = shapes.heads * shapes.dim * shapes.value_dim;
  const std::int64_t transition = shapes.heads * attention::transition_rows(of, shapes.dim) *
                                  attention::transition_width(of, shapes.dim);
  // Contiguous: the last rank, of all runs before its own. Zigzag, of 2P - 1 runs, since the halves
  // of rank P - 1 are neighbours: rank 0, whose late run is the last, of all but its two.
  const bool contiguous = layout == LayoutKind::contiguous;
  const std::int64_t states = contiguous ? ranks - 1 : 2 * ranks - 3;
  const std::int64_t transitions = contiguous ? ranks - 2 : 2 * ranks - 3;
  return (states * state + transitions * transition) * size_bytes(runtime::DType::float32);
}

}  // namespace

LinearChoice choose_linear_scheme(const std::string& text, const Shapes& shapes, LayoutKind layout,
                                  int ranks, std::int64_t rows) {
  if (text != "auto") return {parse_scheme(text, policy_names(), Family::linear), ""};
  const attention::Recurrence& of = shapes.linear->recurrence;
  if (ranks == 1) return {"lasp2", "one rank sends nothing"};
  if (!of.causal) return {"lasp2", "not causal: every rank needs every state"};
  const int groups = shapes.kv_heads;
  if (of.rule == StateRule::delta && 2 * (ranks - 1) <= groups) {
    return {parse_scheme("lasp(replay=true)", {}, Family::linear),
            concat("a delta rule's sweeps that pass the state on by ", counted(groups, "head"),
                   " of q and k wait ", ranks - 1, "/", groups,
                   " of a sweep for each other; summaries would cost 1/2")};
  }
  const std::int64_t gathered = gathered_bytes(shapes, layout, ranks);
  const std::int64_t own = rows *
                           (2 * shapes.kv_heads * shapes.dim + shapes.heads * shapes.value_dim) *
                           size_bytes(shapes.activation);
  const std::string sizes = concat("a rank would gather up to ", counted(gathered, "byte"),
                                   " of states, its own q, k and v are ", counted(own, "byte"));
  if (gathered <= own) return {"lasp2", sizes};
  return {"all_scan", sizes};
}

}  // namespace longhaul::parallel

// USP (Fang & Zhao 2024), as in LoongTrain (Gu et al. 2024): P = U x R; `heads` = U ranks trade
// heads for tokens (ulysses.cpp, which has the bytes), and a scheme of the ring family attends
// `around` R members.

#include "parallel/schemes/degrees.h"
#include "parallel/schemes/ulysses.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;

Expression around(const Expression& usp) { return usp.expression("around").value_or("ring"); }

HeadGrid grid_of(const Degrees& degrees, const Expression& usp) {
  const bool heads_inside = usp.word("nesting", "heads_inside") == "heads_inside";
  return heads_inside ? HeadGrid{degrees.inner, degrees.outer, true}
                      : HeadGrid{degrees.outer, degrees.inner, false};
}

/// What the scheme inside is asked.
Combination inside(const Combination& c, const HeadGrid& grid) {
  return {around(c.scheme), grid.rings, c.heads / grid.heads, std::max(1, c.kv_heads / grid.heads),
          c.layout,         c.causal};
}

/// With as many `heads` as are asked for, such that they can be shared and leave the scheme inside
/// a number of ranks that suits it.
std::optional<HeadGrid> find_grid(const Combination& c) {
  const auto heads = c.scheme.integer("heads");
  const auto degrees = choose_degrees(c.ranks, [&](const Degrees& tried) {
    const HeadGrid grid = grid_of(tried, c.scheme);
    return heads.value_or(grid.heads) == grid.heads &&
           heads_divide(c.heads, c.kv_heads, grid.heads) && !refuse(inside(c, grid));
  });
  return degrees ? std::optional(grid_of(*degrees, c.scheme)) : std::nullopt;
}

HeadGrid grid_of(const Combination& c) {
  const auto grid = find_grid(c);
  LONGHAUL_CHECK(grid, c.scheme.text(), " over ", c.ranks, " ranks was not refused");
  return *grid;
}

std::optional<Refusal> refuse_usp(const Combination& c) {
  if (find_grid(c)) return {};
  const auto heads = c.scheme.integer("heads");
  Refusal refusal;
  for (const Degrees& degrees : legal_degrees(c.ranks, [](const Degrees&) { return true; })) {
    const HeadGrid grid = grid_of(degrees, c.scheme);
    const bool asked = heads.value_or(grid.heads) == grid.heads;
    const auto blame = [&](const std::string& reason) {
      if (asked && refusal.reason.empty()) refusal.reason = reason;
    };
    if (!heads_divide(c.heads, c.kv_heads, grid.heads)) {
      blame(concat("heads=", grid.heads, ": so many ranks cannot share ",
                   runtime::counted(c.heads, "query head"), " and ",
                   runtime::counted(c.kv_heads, "key/value head")));
      continue;
    }
    const Combination ring = inside(c, grid);
    std::vector<Combination> rings{ring};
    if (const auto refused = refuse(ring)) {
      blame(concat("around ", ring.scheme.text(), ": ", refused->reason));
      rings = asked ? refused->nearest : std::vector<Combination>{};
    }
    for (const Combination& other : rings) {
      if (other.ranks != ring.ranks || other.layout != ring.layout) continue;
      refusal.nearest.push_back(under_scheme(
          c, canonical(c.scheme.with("heads", grid.heads).with("around", other.scheme))));
    }
  }
  if (refusal.reason.empty())
    refusal.reason =
        concat("heads=", *heads, " does not divide ", runtime::counted(c.ranks, "rank"));
  return refusal;
}

Expression resolve_usp(const Combination& c) {
  const HeadGrid grid = grid_of(c);
  return c.scheme.with("heads", grid.heads).with("around", resolved(inside(c, grid)));
}

ProgramGenerator prepare_usp(const SchemeInputs& inputs) {
  return prepare_exchange(inputs, grid_of(combination_of(inputs)), around(inputs.scheme));
}

}  // namespace

const Scheme usp_scheme{
    .name = "usp",
    .channels = 2,
    .prepare = prepare_usp,
    .arguments = {{.name = "heads", .type = ArgumentType::integer},
                  {.name = "nesting",
                   .type = ArgumentType::word,
                   .choices = {"heads_inside", "ring_inside"},
                   .otherwise = "heads_inside"},
                  {.name = "around", .type = ArgumentType::ring, .otherwise = "ring"}},
    .refuse = refuse_usp,
    .resolve = resolve_usp,
    .legality =
        "every mask and layout; as ulysses for `heads`, the ranks that share heads, and as "
        "the scheme around which they do"};

}  // namespace longhaul::parallel

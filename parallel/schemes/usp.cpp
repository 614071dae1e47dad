// USP (Fang & Zhao 2024), as in LoongTrain (Gu et al. 2024): P = U x R; `heads` = U ranks trade
// heads for tokens (ulysses.cpp, which has the bytes), and a scheme of the ring family attends
// `around` R members.

#include "parallel/schemes/degrees.h"
#include "parallel/schemes/ulysses.h"
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

/// Degrees whose one of `heads` is that which is asked for, suits the heads, and leaves the scheme
/// inside a number of ranks that it suits.
LegalDegrees suitable(const Combination& c, std::optional<std::int64_t> heads) {
  return [&c, heads](const Degrees& degrees) {
    const HeadGrid grid = grid_of(degrees, c.scheme);
    return heads.value_or(grid.heads) == grid.heads &&
           heads_divide(c.heads, c.kv_heads, grid.heads) && !refuse(inside(c, grid));
  };
}

std::optional<HeadGrid> find_grid(const Combination& c) {
  const auto degrees = choose_degrees(c.ranks, suitable(c, c.scheme.integer("heads")));
  return degrees ? std::optional(grid_of(*degrees, c.scheme)) : std::nullopt;
}

HeadGrid grid_of(const Combination& c) {
  const auto grid = find_grid(c);
  LONGHAUL_CHECK(grid, c.scheme.text(), " over ", c.ranks, " ranks was not refused");
  return *grid;
}

Combination with_heads(const Combination& c, int heads) {
  return under_scheme(c, canonical(c.scheme.with("heads", heads)));
}

/// Why the grid will not do; empty for one that will.
std::string fault_of(const Combination& c, const HeadGrid& grid) {
  if (!heads_divide(c.heads, c.kv_heads, grid.heads)) {
    return concat("heads=", grid.heads, ": so many ranks cannot share ", c.heads,
                  " query heads and ", c.kv_heads, " key/value heads");
  }
  const Combination tried = inside(c, grid);
  const auto refusal = refuse(tried);
  return refusal ? concat("around ", tried.scheme.text(), ": ", refusal->reason) : "";
}

std::optional<Refusal> refuse_usp(const Combination& c) {
  if (find_grid(c)) return {};
  const auto heads = c.scheme.integer("heads");
  Refusal refusal;
  for (const Degrees& degrees : legal_degrees(c.ranks, [](const Degrees&) { return true; })) {
    const HeadGrid grid = grid_of(degrees, c.scheme);
    if (refusal.reason.empty() && heads.value_or(grid.heads) == grid.heads)
      refusal.reason = fault_of(c, grid);
    if (suitable(c, {})(degrees)) refusal.nearest.push_back(with_heads(c, grid.heads));
  }
  if (refusal.reason.empty())
    refusal.reason = concat("heads=", *heads, " does not divide ", c.ranks, " ranks");
  // Where the scheme inside is what suits no number of heads, or not the one asked for.
  for (const Degrees& degrees : legal_degrees(c.ranks, [](const Degrees&) { return true; })) {
    const HeadGrid grid = grid_of(degrees, c.scheme);
    if (heads.value_or(grid.heads) != grid.heads || !heads_divide(c.heads, c.kv_heads, grid.heads))
      continue;
    const auto inner = refuse(inside(c, grid));
    for (const Combination& other : inner ? inner->nearest : std::vector<Combination>{}) {
      if (other.ranks != grid.rings || other.layout != c.layout) continue;
      refusal.nearest.push_back(under_scheme(
          c, canonical(with_heads(c, grid.heads).scheme.with("around", other.scheme))));
    }
  }
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

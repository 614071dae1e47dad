// The double ring of LoongTrain (Gu et al. 2024) and BurstEngine (2025): `outer` nodes of `inner`
// ranks, each level a ring on a channel of its own. In backward keys and values circulate (ring),
// or queries (burst), or whichever sends fewer bytes (auto).
//
// Bytes as ring's or burst's, for I nodes of L ranks: I - 1 blocks between nodes and I (L - 1)
// within, in forward and, with gradients, in backward.

#include "parallel/schemes/degrees.h"
#include "parallel/schemes/ring.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

LegalDegrees asked(const Expression& scheme) {
  const auto outer = scheme.integer("outer"), inner = scheme.integer("inner");
  return [outer, inner](const Degrees& degrees) {
    return outer.value_or(degrees.outer) == degrees.outer &&
           inner.value_or(degrees.inner) == degrees.inner;
  };
}

Degrees degrees_of(const Expression& scheme, int members) {
  const auto degrees = choose_degrees(members, asked(scheme));
  LONGHAUL_CHECK(degrees, scheme.text(), " over ", members, " ranks was not refused");
  return *degrees;
}

Expression written_out(const Expression& scheme, const Degrees& degrees) {
  return canonical(scheme.with("outer", degrees.outer).with("inner", degrees.inner));
}

std::optional<Refusal> refuse_double_ring(const Combination& c) {
  if (choose_degrees(c.ranks, asked(c.scheme))) return {};
  Refusal refusal{
      runtime::concat("outer x inner does not make up ", runtime::counted(c.ranks, "rank")), {}};
  for (const Degrees& degrees : legal_degrees(c.ranks, asked({})))
    refusal.nearest.push_back(under_scheme(c, written_out(c.scheme, degrees)));
  return refusal;
}

RingKind two_levels(const Expression& scheme, int members, const Shapes& shapes,
                    std::optional<runtime::DType> wire_dtype) {
  const auto [outer, inner] = degrees_of(scheme, members);
  const std::string backward = scheme.word("backward", "auto");
  return {{{outer, 0}, {inner, 1}},
          backward == "ring"    ? Circulating::keys
          : backward == "burst" ? Circulating::queries
                                : cheaper_backward(shapes, wire_dtype)};
}

}  // namespace

const Scheme double_ring_scheme{
    .name = "double_ring",
    .channels = 2,
    .prepare = prepare_ring,
    .arguments = {{.name = "outer", .type = ArgumentType::integer},
                  {.name = "inner", .type = ArgumentType::integer},
                  {.name = "backward",
                   .type = ArgumentType::word,
                   .choices = {"auto", "ring", "burst"},
                   .otherwise = "auto"}},
    .ring = two_levels,
    .refuse = refuse_double_ring,
    .resolve =
        [](const Combination& c) { return written_out(c.scheme, degrees_of(c.scheme, c.ranks)); },
    .legality = "every mask, layout and number of ranks; outer x inner make up the ranks"};

}  // namespace longhaul::parallel

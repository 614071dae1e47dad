#pragma once
// What the verifier says of one rank's program by itself, its form (form.h) apart. Each throws a
// Verdict with what is wrong.

#include "parallel/verifier/verifier.h"

namespace longhaul::parallel {

/// The slots that the caller binds, by name: those of the direction, once each, with the rank's
/// rows and all heads, and what states its runs have. Keys and values come as one slot or as two.
void check_bound_slots(const Program& program, const Schedule& schedule,
                       const attention::HeadMasks& masks, const Layout& layout);
/// Conflicting accesses that streams and waits do not order. Shares no code with the builder's
/// derivation.
void check_hazards(const Program& program, int channels);
/// What is lent comes back, once, and nothing writes it meanwhile; a borrowed slot is lent once,
/// and nothing reads it once it was given back. In the order of the steps, which check_hazards()
/// proves.
void check_loans(const Program& program);
/// Bytes of all scratch slots; none that no step uses.
std::int64_t scratch_bytes(const Program& program);

}  // namespace longhaul::parallel

#pragma once
// What the verifier says of one rank's program by itself. Each throws a Verdict with what is wrong.

#include <string>

#include "parallel/verifier.h"

namespace longhaul::parallel {

/// "rank 3, step 5 (Transfer)".
std::string place(const Program& program, int step);
/// "kv[0:6, heads 0:12]".
std::string show(const Program& program, const View& view);

/// Views, kinds, sizes, modes and groups of messages.
void check_form(const Program& program, const Schedule& schedule);
/// The slots that the caller binds, by name: those of the direction, once each, with the rank's
/// rows and all heads. Keys and values come as one slot or as two.
void check_bound_slots(const Program& program, const Schedule& schedule, const Layout& layout);
/// Conflicting accesses that streams and waits do not order. Shares no code with the builder's
/// derivation.
void check_hazards(const Program& program, int channels);
/// Bytes of all scratch slots; none that no step uses.
std::int64_t scratch_bytes(const Program& program, const Shapes& shapes);

}  // namespace longhaul::parallel

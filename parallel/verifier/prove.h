#pragma once
// What every proof of a schedule is made of once it is known what the caller binds.

#include <functional>

#include "parallel/verifier/verifier.h"

namespace longhaul::parallel {

/// Form, hazards and the run of all ranks over shadow values, as verifier.h says; outputs must hold
/// their declared tokens, and accumulators the sums of `masks`. `check_slots` throws a Verdict
/// where a rank's inputs and outputs are not those of the call.
Verdict prove(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout,
              const std::function<void(const Program&)>& check_slots);

}  // namespace longhaul::parallel

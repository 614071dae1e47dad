#pragma once
// Plans of tasks, and programs of them.

#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

/// The plan of a call under `disaggregated`: of its direction with `resend`, else forward's.
TaskPlan plan_of(const SchemeInputs& inputs);
/// The generator of a call whose tasks are dealt so.
ProgramGenerator prepare_tasks(const SchemeInputs& inputs, TaskPlan plan);

}  // namespace longhaul::parallel

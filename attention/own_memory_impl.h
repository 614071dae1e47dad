#pragma once
// Memory of a stream for one call of a plan, its table uploaded. Private to attention/.

#include "attention/block_plan.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::attention::detail {

struct OwnMemory {
  /// Of a BlockPlan or a LinearPlan.
  template <class Plan>
  OwnMemory(const Plan& plan, const runtime::Stream& stream)
      : scratch(stream.allocate(plan.scratch_bytes())) {
    const auto bytes = static_cast<std::int64_t>(plan.table().size());
    memory.scratch = scratch.data();
    memory.table = plan.table().data();
    if (bytes == 0 || stream.device().kind == runtime::DeviceKind::cpu) return;
    table = stream.allocate(bytes);
    runtime::ops::upload_bytes(plan.table(), table.data(), stream);
    memory.table = table.data();
  }
  runtime::Buffer scratch, table;
  BlockMemory memory;
};

}  // namespace longhaul::attention::detail

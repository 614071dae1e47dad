#include "runtime/require_cpu.h"

#include "runtime/error.h"

namespace longhaul::runtime {

void require_cpu(const char* name, const Stream& stream) {
  if (stream.device().kind == DeviceKind::cpu) return;
  fail(ExitCode::config, name, " has no CUDA kernel; use [device] kind = cpu");
}

}  // namespace longhaul::runtime

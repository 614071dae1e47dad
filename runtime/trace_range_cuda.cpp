#include <nvtx3/nvToolsExt.h>

#include <cstdio>

#include "runtime/trace_range.h"

namespace longhaul::runtime {

TraceRange::TraceRange(const char* name) { nvtxRangePushA(name); }

TraceRange::TraceRange(const char* name, std::int64_t number) {
  char text[96];
  std::snprintf(text, sizeof text, "%s %lld", name, static_cast<long long>(number));
  nvtxRangePushA(text);  // copies it
}

TraceRange::~TraceRange() { nvtxRangePop(); }

}  // namespace longhaul::runtime

// The CPU build has no profiler to tell.
#include "runtime/trace_range.h"

namespace longhaul::runtime {

TraceRange::TraceRange(const char*) {}
TraceRange::TraceRange(const char*, std::int64_t) {}
TraceRange::~TraceRange() = default;

}  // namespace longhaul::runtime

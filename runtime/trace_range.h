#pragma once
// Named ranges in a profiler's timeline (NVTX; Nsight Systems shows them).

#include <cstdint>

namespace longhaul::runtime {

/// While it lives, what its thread does, and the device work that it enqueues, lies in a range of
/// that name. Ranges of a thread nest. Next to free without a profiler, and nothing in a CPU build.
class TraceRange {
 public:
  explicit TraceRange(const char* name);
  /// "NAME NUMBER".
  TraceRange(const char* name, std::int64_t number);
  ~TraceRange();
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

}  // namespace longhaul::runtime

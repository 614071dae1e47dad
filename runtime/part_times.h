#pragma once
// Which parts of the program keep a CPU stream busy, and how much work they do meanwhile.

#include <cstdint>
#include <string>

namespace longhaul::runtime {

/// What tasks do, whatever time they take.
struct Work {
  double flops = 0;  ///< a multiply-add counted as two
  double bytes = 0;  ///< read and written, each operand once
};

/// Of all tasks that one source file has enqueued.
struct PartTimes {
  std::string part;  ///< that file's: "rms_norm" of rms_norm.cpp and rms_norm_cpu.cpp
  std::int64_t tasks = 0;
  double seconds = 0;  ///< wall
  Work work;           ///< as far as the part says: Stream::count_work()
};
/// The part of what a stream waits for events of other streams.
inline constexpr const char* kWaitingPart = "waiting";

}  // namespace longhaul::runtime

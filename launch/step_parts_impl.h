#pragma once
// Where the time of a step goes, and how much of it its work would take at the machine's speed.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/bench_json_impl.h"
#include "runtime/dtype.h"
#include "runtime/stream.h"

namespace longhaul::launch {

/// What the threads of a rank can do in a second: see runtime/peak.h and bandwidth.h.
struct Ceilings {
  double kernel_flops = 0;   ///< of attention: runtime::kernel_unit()
  double product_flops = 0;  ///< of matmul: runtime::product_unit()
  double triad_bytes = 0;    ///< of what computes little
  double cores = 0;          ///< that the system gave the threads meanwhile
};

/// Of one step.
struct StepPart {
  std::string name;
  std::int64_t tasks = 0;
  double seconds = 0;
  runtime::Work work;
  /// What its work takes at the ceiling; none: nobody has counted its work.
  std::optional<double> least_seconds;
};

/// Of a rank's compute stream. Seconds of the parts add up to the step's.
struct StepParts {
  double seconds = 0;
  std::vector<StepPart> parts;  ///< most seconds first; "idle" is when nothing was enqueued
  Ceilings ceilings;
  std::string units;        ///< whose ceilings these are, in words
  double wake_seconds = 0;  ///< of waking the team for each task, had all of it slept before

  std::int64_t tasks() const;
  /// The share of the step that its counted work would take at the ceilings: those of the parts,
  /// weighted by time. Work that nobody has counted counts nothing.
  double of_ceiling() const;
};

/// What `steps` steps of so many seconds together have done. `attention_flops`: of one step, which
/// no operation counts.
StepParts step_parts(const std::vector<runtime::PartTimes>& times, int steps, double seconds,
                     double attention_flops, const Ceilings& ceilings);

/// Measures the parts of the steps between its two calls, and ceilings before and after them.
class StepPartsClock {
 public:
  /// Of a CPU stream with so many threads.
  StepPartsClock(const runtime::Stream& compute, runtime::DType dtype, int threads);
  /// `seconds` of each step.
  StepParts stop(const std::vector<double>& seconds, double attention_flops) const;

 private:
  Ceilings measure() const;

  const runtime::Stream compute_;
  const runtime::DType dtype_;
  const int threads_;
  const Ceilings before_;
};

/// What `bench step` prints of them, and writes.
std::string text_of(const StepParts& parts);
Json json_of(const StepParts& parts);

}  // namespace longhaul::launch

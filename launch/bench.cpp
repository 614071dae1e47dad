#include "launch/bench.h"

#include <fmt/format.h>

#include "runtime/counted.h"
#include "runtime/peak.h"

namespace longhaul::launch {

int run_bench_peak(const BenchPeakOptions& options) {
  const runtime::PeakRate peak = runtime::measure_peak(options.threads, options.seconds);
  fmt::print("float32 FMA, 1 thread:   {:9.2f} GFLOP/s\n", peak.one_thread_flops / 1e9);
  fmt::print("float32 FMA, {}: {:9.2f} GFLOP/s\n", runtime::counted(peak.threads, "thread"),
             peak.all_threads_flops / 1e9);
  return 0;
}

}  // namespace longhaul::launch

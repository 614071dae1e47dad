#pragma once
// The verb `bench`: measurements of this machine.

namespace longhaul::launch {

struct BenchPeakOptions {
  int threads = 0;     ///< 0: all cores
  double seconds = 1;  ///< per measurement
};

/// `bench peak`: prints the float32 multiply-add rate of one thread and of all together.
int run_bench_peak(const BenchPeakOptions& options);

}  // namespace longhaul::launch

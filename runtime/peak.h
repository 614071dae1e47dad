#pragma once
// The machine's fp32 multiply-add rate: what MFU and kernel ratios are divided by.

namespace longhaul::runtime {

struct PeakRate {
  double one_thread_flops = 0;   ///< flops a second of one thread alone
  double all_threads_flops = 0;  ///< sum over `threads` threads that run together
  int threads = 0;
};

/// fp32 FMA flops a second, registers only, AVX-512 where the CPU has it and AVX2 otherwise: the
/// median of short samples over about `seconds`, summed over `threads` threads. Each thread divides
/// by its own CPU time, so a busy machine lowers the rate only through its clock. Throws
/// Error(launch) on a CPU without AVX2 and FMA.
double measure_fma_flops(int threads, double seconds);

/// One thread, then all. `threads` <= 0: all cores that this process may use.
PeakRate measure_peak(int threads, double seconds);

/// CPU seconds of the calling thread.
double thread_cpu_seconds();

}  // namespace longhaul::runtime

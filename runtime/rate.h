#pragma once
// Rates of short samples: how peaks are measured.

#include <functional>
#include <vector>

namespace longhaul::runtime {

/// So much a second: the middle of all samples and their quartiles.
struct Rate {
  double lower = 0, median = 0, upper = 0;
  int samples = 0;
  double cores = 0;  ///< that the system gave the threads meanwhile: their CPU time by the wall's
};

/// Does one sample, on the thread that it was made for.
using Sample = std::function<void()>;

/// What `threads` threads do together in about `seconds`, when each sample is `amount` of it: the
/// sums of the threads' quartiles. Each prepares its own samples, then all begin. A thread divides
/// by its own CPU time, so a busy machine lowers the rate only through its clock and its memory.
Rate measure_rate(int threads, double seconds, double amount,
                  const std::function<Sample()>& prepare);

/// CPU seconds of the calling thread.
double thread_cpu_seconds();

}  // namespace longhaul::runtime

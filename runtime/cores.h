#pragma once
// How many cores a rank may use.

namespace longhaul::runtime {

/// Cores that this process may run on: those of its CPU set, which a launcher may have narrowed.
int available_cores();

/// Cores of this host that its `local_size` ranks may use together: all of the host's when each
/// rank was bound to its share, the common set when none was.
int host_cores(int local_size);

/// OpenMP threads of one rank: $OMP_NUM_THREADS when it is set, else its share of host_cores().
int threads_per_rank(int local_size);

}  // namespace longhaul::runtime

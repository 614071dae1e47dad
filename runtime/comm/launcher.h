#pragma once
// What mpirun, srun and PMI put into the environment, and whether MPI agrees with it.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::runtime {

using Environment = std::map<std::string, std::string>;
/// The environment of this process.
Environment process_environment();

/// What one launcher says about this process. Values that are absent or no numbers are empty.
struct LauncherClaim {
  std::string launcher;  ///< "mpirun", "srun", "pmix", "pmi"
  std::optional<int> rank, size, local_rank, local_size;
};

/// The claims found in an environment: OMPI_COMM_WORLD_*, SLURM_* of a step, PMIX_RANK, PMI_*.
std::vector<LauncherClaim> launcher_claims(const Environment& environment);

/// Rank and size as the most specific launcher claims them, for what happens before MPI starts; 0
/// of 1 without one.
struct ClaimedPlace {
  int rank = 0;
  int size = 1;
};
ClaimedPlace claimed_place(const Environment& environment);

/// What MPI says, which is the truth when claims differ.
struct MpiPlace {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;
};

/// Before MPI starts: throws Error(launch) in a task of srun that was given no way to find the
/// others. Open MPI would end such a process inside MPI_Init.
void check_srun_offers_pmi(const Environment& environment);

/// Compares MPI's view with every claim. Throws Error(launch), saying what would do: one MPI rank
/// each where the launcher started several, or any other contradiction.
void check_launcher(const Environment& environment, const MpiPlace& mpi);

/// Throws Error(launch) unless MPI has as many ranks as the process grid needs; `grid` describes
/// it, e.g. "data 2 x context 4".
void check_grid_size(const MpiPlace& mpi, std::int64_t expected, const std::string& grid);

}  // namespace longhaul::runtime

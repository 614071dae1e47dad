#include "runtime/comm/launcher.h"

#include <unistd.h>

#include <charconv>
#include <string_view>

#include "runtime/counted.h"
#include "runtime/error.h"

extern char** environ;

namespace longhaul::runtime {
namespace {

std::optional<int> number(const Environment& environment, const char* key) {
  const auto found = environment.find(key);
  if (found == environment.end()) return std::nullopt;
  const std::string& text = found->second;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// A Slurm step, not the batch script around it: the script's shell is task 0 of 1 of the batch
/// step.
bool in_slurm_step(const Environment& environment) {
  // The batch step's id is no ordinary number.
  return number(environment, "SLURM_STEP_ID") && environment.contains("SLURM_PROCID") &&
         !environment.contains("OMPI_COMM_WORLD_SIZE");
}

void check_claim(const LauncherClaim& claim, const MpiPlace& mpi) {
  const auto differs = [&](const char* what, std::optional<int> claimed, int actual) {
    if (claimed && *claimed != actual) {
      fail(ExitCode::launch, claim.launcher, " says ", what, " ", *claimed, ", MPI says ", actual,
           "; the launcher and the MPI library of this program do not belong together, or the "
           "variables of an "
           "outer launch were inherited");
    }
  };
  if (claim.size && *claim.size > 1 && mpi.size == 1) {
    fail(ExitCode::launch, claim.launcher, " started ", *claim.size,
         " processes, but MPI sees 1 in each, so each would train alone; start with `srun "
         "--mpi=pmix` (`srun "
         "--mpi=list` shows what Slurm offers) or with `mpirun -np ",
         *claim.size, "` of the Open MPI that this program was built with");
  }
  differs("size", claim.size, mpi.size);
  differs("rank", claim.rank, mpi.rank);
  differs("local rank", claim.local_rank, mpi.local_rank);
  differs("local size", claim.local_size, mpi.local_size);
}

}  // namespace

Environment process_environment() {
  Environment environment;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const auto equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

std::vector<LauncherClaim> launcher_claims(const Environment& environment) {
  std::vector<LauncherClaim> claims;
  const auto get = [&](const char* key) { return number(environment, key); };
  if (get("OMPI_COMM_WORLD_SIZE")) {
    claims.push_back({"mpirun", get("OMPI_COMM_WORLD_RANK"), get("OMPI_COMM_WORLD_SIZE"),
                      get("OMPI_COMM_WORLD_LOCAL_RANK"), get("OMPI_COMM_WORLD_LOCAL_SIZE")});
  }
  if (in_slurm_step(environment)) {
    // SLURM_NTASKS is the job's; a step may be smaller.
    const auto size = get("SLURM_STEP_NUM_TASKS");
    claims.push_back(
        {"srun", get("SLURM_PROCID"), size ? size : get("SLURM_NTASKS"), get("SLURM_LOCALID"), {}});
  }
  if (get("PMIX_RANK")) claims.push_back({"pmix", get("PMIX_RANK"), {}, {}, {}});
  if (get("PMI_RANK") || get("PMI_SIZE")) {
    claims.push_back({"pmi", get("PMI_RANK"), get("PMI_SIZE"), {}, {}});
  }
  return claims;
}

ClaimedPlace claimed_place(const Environment& environment) {
  for (const LauncherClaim& claim : launcher_claims(environment)) {
    if (claim.rank && claim.size && *claim.rank < *claim.size) return {*claim.rank, *claim.size};
  }
  return {};
}

void check_srun_offers_pmi(const Environment& environment) {
  if (!in_slurm_step(environment)) return;
  if (environment.contains("PMIX_RANK") || environment.contains("PMI_RANK")) return;
  const int tasks = number(environment, "SLURM_STEP_NUM_TASKS").value_or(1);
  fail(ExitCode::launch, "srun started ", tasks,
       " tasks without PMIx, so MPI would see 1 rank in each; start with `srun --mpi=pmix` (`srun "
       "--mpi=list` shows what Slurm offers) or with `mpirun -np ",
       tasks, "` in the batch script");
}

void check_launcher(const Environment& environment, const MpiPlace& mpi) {
  for (const LauncherClaim& claim : launcher_claims(environment)) check_claim(claim, mpi);
}

void check_grid_size(const MpiPlace& mpi, std::int64_t expected, const std::string& grid) {
  if (mpi.size == expected) return;
  fail(ExitCode::launch, "the process grid (", grid, ") needs ", counted(expected, "rank"),
       ", but MPI has ", mpi.size, "; start with `mpirun -np ", expected,
       "` or `srun --mpi=pmix --ntasks=", expected,
       "`, or change [parallelism] so that its degrees multiply to ", mpi.size);
}

}  // namespace longhaul::runtime

#include "runtime/comm/launcher.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

/// The text of the Error(launch) that `check` throws; "" when it throws none.
template <class Check>
std::string refusal(const Check& check) {
  try {
    check();
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
    return error.what();
  }
}

Environment mpirun(int rank, int size) {
  return {{"OMPI_COMM_WORLD_RANK", std::to_string(rank)},
          {"OMPI_COMM_WORLD_SIZE", std::to_string(size)},
          {"OMPI_COMM_WORLD_LOCAL_RANK", std::to_string(rank)},
          {"OMPI_COMM_WORLD_LOCAL_SIZE", std::to_string(size)},
          {"PMIX_RANK", std::to_string(rank)}};
}

Environment srun(int rank, int size) {
  return {{"SLURM_STEP_ID", "0"},
          {"SLURM_PROCID", std::to_string(rank)},
          {"SLURM_NTASKS", "99"},
          {"SLURM_STEP_NUM_TASKS", std::to_string(size)},
          {"SLURM_LOCALID", std::to_string(rank)}};
}

TEST(Launcher, AcceptsWhatAgrees) {
  EXPECT_EQ(refusal([] { check_launcher({}, {}); }), "");
  EXPECT_EQ(refusal([] { check_launcher(mpirun(2, 4), {2, 4, 2, 4}); }), "");
  EXPECT_EQ(refusal([] { check_launcher(srun(3, 4), {3, 4, 3, 4}); }), "");
  EXPECT_EQ(refusal([] {
              check_launcher({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, {1, 2, 0, 1});
            }),
            "");
}

TEST(Launcher, OneRankWhereSeveralWereStarted) {
  for (const Environment& environment :
       {srun(1, 4), mpirun(1, 4), Environment{{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}}}) {
    const std::string text = refusal([&] { check_launcher(environment, {}); });
    EXPECT_NE(text.find("started 4 processes, but MPI sees 1"), std::string::npos) << text;
    EXPECT_NE(text.find("srun --mpi=pmix"), std::string::npos) << text;
    EXPECT_NE(text.find("mpirun -np 4"), std::string::npos) << text;
  }
}

TEST(Launcher, SrunWithoutPmix) {
  const std::string text = refusal([] { check_srun_offers_pmi(srun(1, 4)); });
  EXPECT_NE(text.find("srun --mpi=pmix"), std::string::npos) << text;
  Environment with_pmix = srun(1, 4);
  with_pmix["PMIX_RANK"] = "1";
  EXPECT_EQ(refusal([&] { check_srun_offers_pmi(with_pmix); }), "");
  EXPECT_EQ(refusal([] { check_srun_offers_pmi(mpirun(1, 4)); }), "");
  EXPECT_EQ(refusal([] { check_srun_offers_pmi({}); }), "");
  Environment batch_script = srun(0, 1);
  batch_script["SLURM_STEP_ID"] = "4294967291";
  EXPECT_EQ(refusal([&] { check_srun_offers_pmi(batch_script); }), "");
  Environment mpirun_in_a_step = srun(0, 4);
  mpirun_in_a_step.merge(mpirun(0, 4));
  EXPECT_EQ(refusal([&] { check_srun_offers_pmi(mpirun_in_a_step); }), "");
}

TEST(Launcher, Contradictions) {
  EXPECT_NE(refusal([] { check_launcher(mpirun(1, 4), {2, 4, 1, 4}); }), "");
  EXPECT_NE(refusal([] { check_launcher(mpirun(1, 4), {1, 2, 1, 4}); }), "");
  EXPECT_NE(refusal([] { check_launcher(mpirun(1, 4), {1, 4, 0, 4}); }), "");
  EXPECT_NE(refusal([] { check_launcher({{"PMIX_RANK", "3"}}, {1, 4, 1, 4}); }), "");
}

TEST(Launcher, MpirunInsideAJobScript) {
  // The batch script's own SLURM variables say 1 task of 1 and are not about the ranks of mpirun.
  Environment environment = mpirun(1, 4);
  environment.merge(
      Environment{{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "1"}});
  EXPECT_EQ(refusal([&] { check_launcher(environment, {1, 4, 1, 4}); }), "");
  const Environment batch{
      {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "4294967291"}, {"SLURM_NTASKS", "4"}};
  EXPECT_EQ(refusal([&] { check_launcher(batch, {}); }), "");
}

TEST(Launcher, IgnoresWhatIsNoNumber) {
  for (const char* bad : {"", "x", "4x", "-1", "99999999999999999999"}) {
    EXPECT_TRUE(
        launcher_claims({{"OMPI_COMM_WORLD_SIZE", bad}, {"PMI_SIZE", bad}, {"PMIX_RANK", bad}})
            .empty())
        << bad;
  }
}

TEST(Launcher, ClaimedPlace) {
  EXPECT_EQ(claimed_place({}).size, 1);
  EXPECT_EQ(claimed_place(mpirun(2, 4)).rank, 2);
  EXPECT_EQ(claimed_place(srun(3, 5)).size, 5);
}

TEST(Launcher, GridSize) {
  EXPECT_EQ(refusal([] { check_grid_size({0, 8, 0, 8}, 8, "data 2 x context 4"); }), "");
  const std::string text = refusal([] { check_grid_size({0, 6, 0, 6}, 8, "data 2 x context 4"); });
  for (const char* part :
       {"data 2 x context 4", "needs 8 ranks", "MPI has 6", "mpirun -np 8", "multiply to 6"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

TEST(Launcher, ReadsTheProcessEnvironment) {
  ASSERT_EQ(setenv("LONGHAUL_TEST_VARIABLE", "a=b", 1), 0);
  EXPECT_EQ(process_environment().at("LONGHAUL_TEST_VARIABLE"), "a=b");
}

}  // namespace
}  // namespace longhaul::runtime

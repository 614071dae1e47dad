// Runs of the real program that must be the same run: interrupted, on other grids, over another
// backend.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <sstream>

#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

void expect_close(const StepTexts& actual, const StepTexts& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [step, text] : expected) {
    ASSERT_TRUE(actual.contains(step)) << "no step " << step;
    std::istringstream left(actual.at(step)), right(text);
    for (const char* name : {"loss", "gradient norm"}) {
      double value = 0, reference = 0;
      left >> value;
      right >> reference;
      EXPECT_TRUE(std::abs(value - reference) <= 1e-5 * std::abs(reference))
          << name << " of step " << step << " is " << value << ", expected " << reference;
    }
  }
}

TEST(Resume, AFreshStartDoesNotMixWithAnEarlierRun) {
  const TrainingJob job;
  const std::vector<std::string> common = {"checkpoint.interval=2", "checkpoint.keep_latest_k=0",
                                           "lr_scheduler.warmup_steps=1"};
  const auto run = [&](std::vector<std::string> sets) {
    sets.insert(sets.end(), common.begin(), common.end());
    const ProcessResult result = job.run(2, "again", sets);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  run({"training.steps=4"});
  ASSERT_EQ(job.checkpoints("again"), (std::vector<std::int64_t>{2, 4}));
  const StepTexts before = job.steps("again");

  const std::string fresh =
      run({"training.steps=2", "checkpoint.resume=never", "optimizer.lr=1e-4"});
  EXPECT_NE(fresh.find("checkpoints/aside-1\n"), std::string::npos) << fresh;
  EXPECT_EQ(job.checkpoints("again"), (std::vector<std::int64_t>{2}));
  EXPECT_TRUE(fs::exists(job.output("again", "checkpoints/aside-1/step-00000002")));
  EXPECT_TRUE(fs::exists(job.output("again", "checkpoints/aside-1/step-00000004")));
  EXPECT_TRUE(fs::exists(job.output("again", "metrics.jsonl.1")));

  const std::string rest = run({"training.steps=4", "optimizer.lr=1e-4"});
  EXPECT_NE(rest.find("from the checkpoint of step 2"), std::string::npos) << rest;
  const StepTexts after = job.steps("again");
  ASSERT_EQ(after.size(), 4u);  // steps 1 to 4 of one run
  EXPECT_NE(after.at(4), before.at(4));
  const std::string finished = run({"training.steps=4", "optimizer.lr=1e-4"});
  EXPECT_NE(finished.find("nothing to do"), std::string::npos) << finished;
}

TEST(Resume, OnAnyNumberOfRanks) {
  const TrainingJob job;
  std::vector<std::string> sets = {"training.steps=20", "checkpoint.interval=10",
                                   "checkpoint.keep_latest_k=0"};
  const ProcessResult straight = job.run(4, "straight", sets);
  ASSERT_EQ(straight.exit_code, 0) << straight.err;
  const StepTexts expected = job.steps("straight");
  ASSERT_EQ(expected.size(), 20u);
  ASSERT_EQ(job.checkpoints("straight"), (std::vector<std::int64_t>{10, 20}));
  for (const int ranks : {4, 1, 2, 8}) {
    SCOPED_TRACE(ranks);
    const std::string name = "resumed" + std::to_string(ranks);
    fs::copy(job.output("straight"), job.output(name), fs::copy_options::recursive);
    fs::remove_all(job.checkpoint(name, 20));
    const ProcessResult resumed = job.run(ranks, name, sets);
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_NE(resumed.out.find("resumed  from the checkpoint of step 10"), std::string::npos)
        << resumed.out;
    if (ranks == 4) {
      EXPECT_EQ(job.steps(name), expected);
    } else {
      expect_close(job.steps(name), expected);
    }
  }
}

TEST(Resume, FromAGivenStep) {
  const TrainingJob job;
  std::vector<std::string> sets = {"training.steps=6", "checkpoint.interval=2",
                                   "checkpoint.keep_latest_k=0"};
  ASSERT_EQ(job.run(2, "run", sets).exit_code, 0);
  const StepTexts expected = job.steps("run");
  sets.push_back("checkpoint.resume=4");
  const ProcessResult resumed = job.run(2, "run", sets);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.out.find("resumed  from the checkpoint of step 4"), std::string::npos)
      << resumed.out;
  EXPECT_EQ(job.steps("run"), expected);
  // What came later before is kept, steps as checkpoints.
  EXPECT_NE(resumed.out.find("later metrics of an earlier run are now in"), std::string::npos)
      << resumed.out;
  EXPECT_TRUE(fs::exists(job.output("run", "checkpoints/aside-1/step-00000006")));
  const ProcessResult report = run_longhaul({"report", job.output("run", "metrics.jsonl.1")});
  EXPECT_EQ(report.exit_code, 0) << report.err;
  EXPECT_NE(report.out.find("(step 5)"), std::string::npos) << report.out;
  EXPECT_NE(report.out.find("(step 6)"), std::string::npos) << report.out;
  EXPECT_NE(report.out.find("steps 1 to 4 are missing"), std::string::npos) << report.out;
  sets.back() = "checkpoint.resume=3";
  const ProcessResult absent = job.run(0, "run", sets);
  EXPECT_EQ(absent.exit_code, 78) << absent.err;
}

TEST(Backends, LoopbackAndMpiGiveTheSameBitsShardedOrNot) {
  const TrainingJob job;
  for (const auto& [data, context] : {std::pair{1, 4}, {2, 2}, {1, 3}}) {
    const std::string grid = std::to_string(data) + "x" + std::to_string(context);
    SCOPED_TRACE(grid);
    std::vector<std::string> sets = {
        "training.steps=8", "model.intermediate_size=511",
        "parallelism.context_parallel_degree=" + std::to_string(context),
        "parallelism.data_parallel_replicate_degree=" + std::to_string(data)};
    const ProcessResult mpi = job.run(data * context, "mpi" + grid, sets);
    ASSERT_EQ(mpi.exit_code, 0) << mpi.err;
    sets.push_back("comm.backend=loopback");
    const ProcessResult loopback = job.run(0, "loopback" + grid, sets);
    ASSERT_EQ(loopback.exit_code, 0) << loopback.err;
    EXPECT_EQ(job.steps("mpi" + grid).size(), 8u);
    EXPECT_EQ(job.steps("loopback" + grid), job.steps("mpi" + grid));
    sets.back() = "parallelism.shard=optimizer";
    const ProcessResult sharded = job.run(data * context, "sharded" + grid, sets);
    ASSERT_EQ(sharded.exit_code, 0) << sharded.err;
    EXPECT_EQ(job.steps("sharded" + grid), job.steps("mpi" + grid));
    const std::string ranks = "ranks    " + std::to_string(data * context) + " on 1 host, over ";
    EXPECT_NE(loopback.out.find(ranks + "loopback\n"), std::string::npos) << loopback.out;
    EXPECT_NE(mpi.out.find(ranks + "Open MPI v"), std::string::npos) << mpi.out;
  }
}

}  // namespace
}  // namespace longhaul::test

// What a run leaves in its folder: every file has its line in launch/README.md, and the
// configuration is one that gives the same run.
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>
#include <set>

#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

TEST(RunFolder, HoldsNoFileThatTheReadmeDoesNotName) {
  const TrainingJob job;
  write_random_corpus(job.folder().file("held_out.h5"), 500, 61, 9);
  std::vector<std::string> sets = {"training.steps=2",
                                   "comm.backend=loopback",
                                   "lr_scheduler.warmup_steps=0",
                                   "parallelism.context_parallel_degree=2",
                                   "checkpoint.interval=1",
                                   "validation.enable=true",
                                   "validation.corpus=" + job.folder().file("held_out.h5")};
  for (const char* resume : {"auto", "1", "never"}) {
    sets.push_back(std::string("checkpoint.resume=") + resume);
    const ProcessResult result = job.run(0, "out", sets);
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  const std::string readme = read_text(std::string(LONGHAUL_SOURCE_DIR) + "/launch/README.md");
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(job.output("out"))) {
    if (entry.is_directory()) continue;
    const std::string path = fs::relative(entry.path(), job.output("out")).string();
    names.insert(std::regex_replace(path, std::regex("\\b[0-9]+\\b"), "N"));
  }
  EXPECT_GE(names.size(), 7u);  // metrics, theirs of before, configuration, checkpoints, flight
  for (const std::string& name : names)
    EXPECT_NE(readme.find("| `" + name + "` |"), std::string::npos) << name;
}

TEST(RunFolder, TheResolvedConfigurationGivesTheSameRun) {
  const TrainingJob job;
  const std::vector<std::string> sets = {
      "training.steps=3", "comm.backend=loopback", "lr_scheduler.warmup_steps=0",
      "parallelism.context_parallel_degree=2", "parallelism.context_parallel_scheme=burst"};
  ASSERT_EQ(job.run(0, "out", sets).exit_code, 0);
  const std::string config = job.output("out", "config.toml");
  const auto resolved = [](const std::vector<std::string>& arguments) {
    const ProcessResult result = run_longhaul(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out.substr(result.out.find("# digest"));
  };
  std::vector<std::string> validate = job.train("out", sets);
  validate[0] = "validate";
  EXPECT_EQ(resolved({"validate", config}), resolved(validate));

  // A resumed run's is its own.
  ASSERT_EQ(run_longhaul(
                {"train", config, "--set", "checkpoint.resume=never", "--set", "optimizer.lr=2e-3"})
                .exit_code,
            0);
  EXPECT_NE(read_text(config).find("lr = 0.002"), std::string::npos) << read_text(config);
  EXPECT_NE(read_text(config).find("scheme = \"burst\""), std::string::npos);
}

}  // namespace
}  // namespace longhaul::test

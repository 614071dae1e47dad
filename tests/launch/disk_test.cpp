// Checkpoint folders that cannot be written to or are too small, told before step 1 or at the save.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <numeric>

#include "runtime/io/checkpoint_room.h"
#include "tests/support/training_job.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using runtime::CheckpointPlan;
using test::ProcessResult;

constexpr std::int64_t kMib = 1 << 20;

/// When the disk is full, found by writing one checkpoint after another.
std::int64_t simulated(const CheckpointPlan& plan) {
  std::int64_t count = plan.existing, room = plan.free_bytes;
  for (std::int64_t step = plan.completed_steps + 1; step <= plan.steps; ++step) {
    if (step % plan.interval != 0 && step != plan.steps) continue;
    room -= plan.checkpoint_bytes;
    if (room < 0) return step;
    ++count;
    for (; plan.keep_latest_k > 0 && count > plan.keep_latest_k; --count)
      room += plan.checkpoint_bytes;
  }
  return 0;
}

TEST(CheckpointPlan, SaysTheStepAtWhichASimulatedDiskIsFull) {
  int full = 0, never = 0;
  for (const std::int64_t keep : {0, 1, 2, 5}) {
    for (const std::int64_t existing : {0, 1, 2}) {
      if (keep > 0 && existing > keep) continue;
      for (const std::int64_t interval : {1, 4, 7, 100}) {
        for (const std::int64_t completed : {0, 1, 7, 8, 99}) {
          for (const std::int64_t steps : {1, 7, 28, 29, 100}) {
            if (completed > steps) continue;
            for (const std::int64_t free : {0, 99, 100, 101, 299, 300, 301, 777}) {
              const CheckpointPlan plan{100, free, existing, keep, interval, completed, steps};
              ASSERT_EQ(plan.fills_at(), simulated(plan))
                  << "keep " << keep << ", existing " << existing << ", every " << interval
                  << ", from " << completed << " to " << steps << ", free " << free;
              ++(plan.fills_at() > 0 ? full : never);
            }
          }
        }
      }
    }
  }
  EXPECT_GT(full, 300);
  EXPECT_GT(never, 300);
}

std::int64_t bytes_below(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += static_cast<std::int64_t>(entry.file_size());
  }
  return bytes;
}

std::string line(const std::string& text, const std::string& name) {
  const auto begin = text.find("\n" + name);
  return begin == std::string::npos
             ? "no line '" + name + "' in: " + text
             : text.substr(begin + 1, text.find('\n', begin + 1) - begin - 1);
}

TEST(Disk, TheSizeThatTheStartStatesIsThatOfTheCheckpoint) {
  const test::TrainingJob job;
  for (const int ranks : {1, 3}) {
    const std::string name = "run" + std::to_string(ranks);
    const ProcessResult result = job.run(ranks, name,
                                         {"training.steps=1", "lr_scheduler.warmup_steps=0",
                                          "checkpoint.interval=1", "model.hidden_size=128"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string saves = line(result.out, "saves    ");
    double stated = 0;
    char unit = 0;
    ASSERT_EQ(std::sscanf(saves.c_str(), "saves    %lf %c", &stated, &unit), 2) << saves;
    ASSERT_EQ(unit, 'M') << saves;
    const auto written = static_cast<double>(bytes_below(job.checkpoint(name, 1))) / kMib;
    EXPECT_NEAR(stated, written, 0.05 * written + 0.05) << saves;
    EXPECT_NE(saves.find("every 1 steps"), std::string::npos) << saves;
    EXPECT_FALSE(fs::exists(job.output(name, "checkpoints/.longhaul-probe"))) << "left behind";
    EXPECT_EQ(std::distance(fs::directory_iterator(job.output(name, "checkpoints")), {}), 1);
  }
}

/// A folder of a file system of its own, of this many bytes, that only one command sees.
class SmallDisk {
 public:
  explicit SmallDisk(std::string folder) : folder_(std::move(folder)) {
    fs::create_directories(folder_);
  }
  /// Why there is none; empty when there is.
  std::string missing() const {
    const ProcessResult result = run(kMib, {"true"});
    return result.exit_code == 0 ? "" : "no tmpfs can be mounted here: " + result.err;
  }
  ProcessResult run(std::int64_t bytes, const std::vector<std::string>& command) const {
    const std::string mount =
        "mount -t tmpfs -o size=" + std::to_string(bytes) + " tmpfs \"$0\" && \"$@\"";
    std::vector<std::string> all{"unshare", "--mount", "sh", "-c", mount, folder_};
    all.insert(all.end(), command.begin(), command.end());
    return test::run_process(all);
  }

 private:
  std::string folder_;
};

/// Runs the job with its checkpoints on a disk of `bytes`.
ProcessResult train_on(const SmallDisk& disk, std::int64_t bytes, const test::TrainingJob& job,
                       const std::string& name, std::vector<std::string> sets, int ranks = 1) {
  sets.push_back("checkpoint.folder=" + job.folder().file("disk"));
  std::vector<std::string> command{test::longhaul_program()};
  if (ranks > 1) {
    command = test::mpirun_command(ranks, job.train(name, sets));
  } else {
    for (const std::string& argument : job.train(name, sets)) command.push_back(argument);
  }
  return disk.run(bytes, command);
}

TEST(Disk, LessRoomThanACheckpointIsRefusedBeforeTheFirstStep) {
  const test::TrainingJob job;
  const SmallDisk disk(job.folder().file("disk"));
  if (const std::string why = disk.missing(); !why.empty()) GTEST_SKIP() << why;
  for (const int ranks : {1, 3}) {
    const std::string name = "run" + std::to_string(ranks);
    const ProcessResult result =
        train_on(disk, 256 << 10, job, name, {"model.hidden_size=128"}, ranks);
    EXPECT_EQ(result.exit_code, 74) << result.err;
    EXPECT_NE(result.err.find("no space left on " + job.folder().file("disk")), std::string::npos)
        << result.err;
    EXPECT_EQ(result.out.find("step 1/"), std::string::npos) << result.out;
  }
}

TEST(Disk, ADiskThatFillsUpIsForetoldAndSaysWhichStepIsSafe) {
  const test::TrainingJob job;
  const SmallDisk disk(job.folder().file("disk"));
  if (const std::string why = disk.missing(); !why.empty()) GTEST_SKIP() << why;
  // Room for two checkpoints, not for the third that is written before the first goes.
  const std::vector<std::string> sets{"model.hidden_size=128", "training.steps=8",
                                      "checkpoint.interval=2", "checkpoint.keep_latest_k=2"};
  const ProcessResult sized = job.run(
      1, "sized", {"model.hidden_size=128", "training.steps=1", "lr_scheduler.warmup_steps=0"});
  ASSERT_EQ(sized.exit_code, 0) << sized.err;
  const std::int64_t bytes = bytes_below(job.checkpoint("sized", 1));
  const ProcessResult result = train_on(disk, bytes * 28 / 10, job, "full", sets);
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_NE(line(result.out, "warning  ").find("full before the checkpoint of step 6"),
            std::string::npos)
      << result.out;
  EXPECT_NE(result.err.find("error: no space left on " + job.folder().file("disk")),
            std::string::npos)
      << result.err;
  EXPECT_NE(result.err.find("for the checkpoint of step 6: the checkpoint of step 4 is complete"),
            std::string::npos)
      << result.err;
  // With room for three, nothing is said and all of it runs.
  const ProcessResult enough = train_on(disk, bytes * 33 / 10, job, "enough", sets);
  EXPECT_EQ(enough.exit_code, 0) << enough.err;
  EXPECT_EQ(enough.out.find("warning"), std::string::npos) << enough.out;
}

TEST(Disk, ACorpusThatFitsOnlyOnceIsToldAsAFullDisk) {
  const test::TempDirectory folder;
  const SmallDisk disk(folder.file("disk"));
  if (const std::string why = disk.missing(); !why.empty()) GTEST_SKIP() << why;
  // Tokens pass through a file beside the corpus. The last page that is missing is one of either.
  const std::string text = folder.write("text", std::string(600 << 10, 'a'));
  for (const std::int64_t kib : {300, 604, 1100, 1200}) {
    const ProcessResult result = disk.run(
        kib << 10,
        {test::longhaul_program(), "tokenize", "--output", folder.file("disk/corpus.h5"), text});
    EXPECT_EQ(result.exit_code, 74) << kib << result.out << result.err;
    EXPECT_NE(result.err.find("error: no space left for "), std::string::npos) << kib << result.err;
  }
}

TEST(Disk, AFolderThatCannotBeWrittenToIsRefusedBeforeTheFirstStep) {
  const test::TrainingJob job;
  test::write_text(job.folder().file("plain"), "");
  const auto refused = [&](const ProcessResult& result, const std::string& why) {
    EXPECT_EQ(result.exit_code, 74) << result.err;
    EXPECT_NE(result.err.find("checkpoint.folder = "), std::string::npos) << result.err;
    EXPECT_NE(result.err.find(why), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("checkpoint.enable"), std::string::npos) << result.err;
    EXPECT_EQ(result.out.find("step 1/"), std::string::npos) << result.out;
  };
  refused(job.run(1, "a", {"checkpoint.folder=" + job.folder().file("plain")}), "plain");
  refused(job.run(3, "b", {"checkpoint.folder=" + job.folder().file("plain/below")}), "plain");

  // As somebody who may not write there: root may write everywhere.
  std::vector<std::string> command{test::longhaul_program()};
  const auto train =
      job.train("c", {"checkpoint.folder=" + job.folder().file("closed/checkpoints")});
  command.insert(command.end(), train.begin(), train.end());
  fs::create_directory(job.folder().file("closed"));
  fs::permissions(job.folder().file("closed"), fs::perms::owner_read | fs::perms::owner_exec |
                                                   fs::perms::others_read | fs::perms::others_exec);
  if (::geteuid() == 0) {
    fs::create_directory(job.output("c"));
    fs::permissions(job.folder().path(), fs::perms::all);
    fs::permissions(job.output("c"), fs::perms::all);
    fs::permissions(job.corpus(), fs::perms::all);
    fs::permissions(job.config(), fs::perms::all);
    command.insert(command.begin(),
                   {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"});
    if (test::run_process({"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                           test::longhaul_program(), "--version"})
            .exit_code != 0)
      GTEST_SKIP() << "nobody may not run this build's program";
  }
  refused(test::run_process(command, {.environment = {{"HOME", "/tmp"}}}), "Permission denied");
}

}  // namespace
}  // namespace longhaul::launch

// Jobs of the real program that validate: what they write, and that it is the same after a resume.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <sstream>

#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Step and loss of the validations, as metrics.jsonl spells them.
std::vector<std::string> validations(const std::string& metrics) {
  std::vector<std::string> rows;
  std::istringstream lines(read_text(metrics));
  for (std::string line; std::getline(lines, line);) {
    const std::string begin = "{\"record\":\"validation\",";
    if (line.starts_with(begin))
      rows.push_back(line.substr(begin.size(), line.find(",\"tokens\"") - begin.size()));
  }
  return rows;
}

class ValidationJob : public testing::Test {
 protected:
  ValidationJob() { write_random_corpus(held_out(), 3'000, 61, 9); }
  std::string held_out() const { return job_.folder().file("held_out.h5"); }
  std::string metrics(const std::string& name) const { return job_.output(name, "metrics.jsonl"); }
  ProcessResult run(const std::string& name, std::vector<std::string> sets, int ranks = 0) const {
    const std::vector<std::string> common = {
        ranks == 0 ? "comm.backend=loopback" : "comm.backend=mpi",
        "parallelism.data_parallel_replicate_degree=2",
        "parallelism.context_parallel_degree=2",
        "training.steps=10",
        "checkpoint.interval=4",
        "checkpoint.keep_latest_k=0"};
    sets.insert(sets.begin(), common.begin(), common.end());
    ProcessResult result = job_.run(ranks, name, sets);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result;
  }
  std::vector<std::string> enabled() const {
    return {"validation.enable=true", "validation.freq=4", "validation.corpus=" + held_out()};
  }
  void copy(const std::string& from, const std::string& to) const {
    fs::copy(job_.output(from), job_.output(to), fs::copy_options::recursive);
  }

  TrainingJob job_;
};

TEST_F(ValidationJob, TrainingIsTheSameBitForBitAndAResumeGivesTheSameLosses) {
  run("off", {});
  const ProcessResult on = run("on", enabled());
  EXPECT_EQ(job_.steps("on").size(), 10u);
  EXPECT_EQ(job_.steps("on"), job_.steps("off"));
  const std::vector<std::string> rows = validations(metrics("on"));
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_TRUE(rows[0].starts_with("\"step\":4,")) << rows[0];
  EXPECT_TRUE(rows[1].starts_with("\"step\":8,")) << rows[1];
  EXPECT_TRUE(rows[2].starts_with("\"step\":10,")) << rows[2];
  EXPECT_TRUE(has(on.out, "\nstep 8/10 | validation loss ")) << on.out;
  EXPECT_TRUE(has(on.out,
                  "\nvalidate every 4 steps and after the last: 32 sequences, 3,000 of "
                  "3,000 tokens of "))
      << on.out;
  EXPECT_TRUE(validations(metrics("off")).empty());

  run("mpi", enabled(), 4);
  EXPECT_EQ(validations(metrics("mpi")), rows);

  copy("on", "resumed");
  fs::remove_all(job_.checkpoint("resumed", 10));
  run("resumed", enabled());
  EXPECT_EQ(job_.steps("resumed"), job_.steps("off"));
  EXPECT_EQ(validations(metrics("resumed")), rows);
  EXPECT_EQ(validations(metrics("resumed") + ".1"), std::vector{rows[2]});

  // Killed while it validated: the step's row is there, and its checkpoint, but no validation.
  for (const std::string step : {"8", "10"}) {
    SCOPED_TRACE(step);
    const std::string name = "killed" + step;
    copy("on", name);
    if (step == "8") fs::remove_all(job_.checkpoint(name, 10));
    const std::string text = read_text(metrics("on"));
    const auto cut = text.find("{\"record\":\"validation\",\"step\":" + step);
    ASSERT_NE(cut, std::string::npos);
    write_text(metrics(name), text.substr(0, cut + 30));  // and a torn line
    const ProcessResult again = run(name, enabled());
    EXPECT_EQ(has(again.out, "only its validation is left to do"), step == "10") << again.out;
    EXPECT_EQ(validations(metrics(name)), rows);
    EXPECT_EQ(job_.steps(name), job_.steps("off"));
    EXPECT_FALSE(fs::exists(metrics(name) + ".1"));
    const ProcessResult done = run(name, enabled());
    EXPECT_TRUE(has(done.out, "nothing to do")) << done.out;
    EXPECT_EQ(validations(metrics(name)), rows);
  }
}

TEST_F(ValidationJob, ASignalDuringALongOneIsHeededAndItIsMadeUpFor) {
  write_random_corpus(held_out(), 2'000'000, 61, 9);  // some 20,000 sequences
  std::vector<std::string> sets = enabled();
  sets.insert(sets.end(), {"validation.freq=1", "training.tokens_per_step=96", "training.steps=3",
                           "lr_scheduler.warmup_steps=0", "parallelism.context_parallel_degree=1",
                           "comm.backend=loopback"});
  Process job([&] {
    std::vector<std::string> command = job_.train("stopped", sets);
    command.insert(command.begin(), longhaul_program());
    return command;
  }());
  EXPECT_TRUE(wait_until([&] { return !job.running() || !job_.steps("stopped").empty(); }, 50));
  job.signal(SIGUSR1);
  const ProcessResult result = job.wait();
  EXPECT_EQ(result.exit_code, 75) << result.err << result.out;
  EXPECT_EQ(job_.checkpoints("stopped"), std::vector<std::int64_t>{1});
  EXPECT_TRUE(validations(metrics("stopped")).empty());

  sets.push_back("validation.steps=2");
  const ProcessResult resumed = job_.run(0, "stopped", sets);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_EQ(validations(metrics("stopped")).size(), 3u);
  EXPECT_EQ(job_.steps("stopped").size(), 3u);
}

}  // namespace
}  // namespace longhaul::test

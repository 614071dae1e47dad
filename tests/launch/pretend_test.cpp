// Pretended compute: how it is asked for, what it refuses, and that every figure says so.
#include "launch/pretend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "launch/metrics.h"
#include "runtime/io/hdf5.h"
#include "tests/support/attention_server.h"
#include "tests/support/expect_error.h"
#include "tests/support/training_job.h"

namespace longhaul::launch {
namespace {

namespace hdf5 = runtime::hdf5;
using runtime::ExitCode;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Pretend, IsReadAndWrittenInFull) {
  const Pretending all =
      parse_pretending("slow=3:2.5,flops=3e9,rows=100,seconds=0.25,partial=2,slow=0:4,slow=1.5");
  EXPECT_EQ(all.text(),
            "flops=3000000000,rows=100,partial=2,seconds=0.25,slow=1.5,slow=0:4,slow=3:2.5");
  EXPECT_EQ(parse_pretending(all.text()).text(), all.text());
  const attention::Pretence usual = all.of_rank(1), slow = all.of_rank(3);
  EXPECT_EQ(usual, (attention::Pretence{3e9, 100, 2, 0.25, 1.5}));
  EXPECT_EQ(slow, (attention::Pretence{3e9, 100, 2, 0.25, 3.75}));
  EXPECT_EQ(parse_pretending(kDefaultPretending).model, attention::Pretence{});
  EXPECT_NO_THROW(all.check_ranks(4));
  test::expect_error(ExitCode::usage, "slow=3:2.5", [&] { all.check_ranks(3); });
}

TEST(Pretend, WhatIsNotUnderstoodIsNamed) {
  const std::pair<const char*, const char*> wrong[] = {
      {"", "expected KEY=VALUE"},
      {"flops", "expected KEY=VALUE"},
      {"flops=2e9,", "expected KEY=VALUE"},
      {"flops=2e9,,rows=1", "expected KEY=VALUE"},
      {"flop=2e9", "'flop=2e9'"},
      {"flops=0", "expected a number above 0"},
      {"flops=1e-300", "expected at least 1 a second"},
      {"flops=-1", "expected a number above 0"},
      {"flops=fast", "'flops=fast'"},
      {"flops=2e9x", "'flops=2e9x'"},
      {"flops=1e999", "'flops=1e999'"},
      {"flops=nan", "'flops=nan'"},
      {"rows=-1", "at least 0"},
      {"seconds=inf", "at least 0"},
      {"slow=", "expected a number above 0"},
      {"slow=0", "expected a number above 0"},
      {"slow=1:", "expected a number above 0"},
      {"slow=x:3", "slow=RANK:FACTOR"},
      {"slow=-1:3", "slow=RANK:FACTOR"},
      {"slow=1.5:3", "slow=RANK:FACTOR"},
      {"slow=:3", "slow=RANK:FACTOR"},
      {"slow=1:3,slow=1:4", "rank 1 is there twice"},
      {"slow=3,slow=4", "slow is there twice"},
      {"rows=1,rows=1", "rows is there twice"}};
  for (const auto& [text, said] : wrong) {
    SCOPED_TRACE(text);
    test::expect_error(ExitCode::usage, said, [&text = text] { parse_pretending(text); });
  }
}

TEST(Pretend, StragglersAreTheSlowestOverTheMean) {
  const std::vector<double> seconds{1, 2, 6};
  const Straggler straggler = straggler_of(seconds);
  EXPECT_DOUBLE_EQ(straggler.mean_seconds, 3);
  EXPECT_DOUBLE_EQ(straggler.seconds, 3);
  EXPECT_DOUBLE_EQ(straggler.imbalance, 2);
  EXPECT_TRUE(std::isnan(straggler_of(std::vector<double>{0, 0}).imbalance));
  EXPECT_TRUE(std::isnan(straggler_of({}).seconds));
}

const std::vector<std::string> kTwoRanks = {"training.steps=3",
                                            "comm.backend=loopback",
                                            "checkpoint.enable=false",
                                            "lr_scheduler.warmup_steps=0",
                                            "data.mask=causal",
                                            "parallelism.context_parallel_degree=2",
                                            "parallelism.context_parallel_layout=contiguous"};

/// `sets` and `--pretend`.
std::vector<std::string> pretended(const test::TrainingJob& job, const std::string& name,
                                   const std::string& model,
                                   std::vector<std::string> sets = kTwoRanks) {
  std::vector<std::string> arguments = job.train(name, sets);
  arguments.push_back("--pretend");
  if (!model.empty()) arguments.push_back(model);
  return arguments;
}

/// Under `ring` the second rank makes two block calls where the first makes one.
TEST(PretendedTraining, TakesTheModelsTimeAndSaysSoEverywhere) {
  const test::TrainingJob job;
  const double call = 0.004;
  for (const double slow : {1.0, 3.0}) {
    const std::string model = "flops=1e18,seconds=0.004,slow=1:" + std::to_string(slow);
    const test::ProcessResult result = test::run_longhaul(pretended(job, "out", model));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(has(result.out, "\npretended softmax attention only takes")) << result.out;
    EXPECT_TRUE(has(result.out, "seconds=0.004,slow=1:")) << result.out;
    EXPECT_TRUE(has(result.out, "step 3/3 | pretended | loss - | gnorm - | lr ")) << result.out;
    EXPECT_TRUE(has(result.out, " | mfu - | ")) << result.out;

    const MetricsLog log = read_metrics(job.output("out", "metrics.jsonl"));
    EXPECT_TRUE(has(log.pretended, "seconds=0.004")) << log.pretended;
    ASSERT_EQ(log.steps.size(), 3u);
    for (const StepMetrics& step : log.steps) {
      EXPECT_TRUE(std::isnan(step.loss) && std::isnan(step.grad_norm) && std::isnan(step.mfu));
      const double of_first = 2 * step.attention_seconds / (1 + 2 * slow);
      const double calls = of_first / call;
      EXPECT_NEAR(calls, std::round(calls), 1e-3) << "the model's seconds, whatever a step took";
      EXPECT_GE(calls, 1);
      EXPECT_NEAR(step.attention_imbalance, 2 * slow / (0.5 + slow), 1e-3);
      EXPECT_NEAR(step.straggler_seconds, (2 * slow - 0.5 - slow) * of_first, 1e-4);
      EXPECT_GE(step.seconds, 2 * slow * of_first * 0.999);
    }
    const test::ProcessResult report =
        test::run_longhaul({"report", job.output("out", "metrics.jsonl")});
    EXPECT_EQ(report.exit_code, 0) << report.err;
    EXPECT_TRUE(has(report.out, "pretended         attention took the time of a model (flops="));
    EXPECT_TRUE(has(report.out, "(median step, pretended)")) << report.out;
    EXPECT_FALSE(has(report.out, "loss, last")) << report.out;
    EXPECT_FALSE(has(report.out, "nan")) << report.out;
    EXPECT_FALSE(has(report.out, "MFU")) << report.out;
  }
  EXPECT_TRUE(has(test::read_text(job.output("out", "config.toml")), "pretend = \"flops="));
}

TEST(PretendedTraining, IsRefusedWhereItWouldMislead) {
  const test::TrainingJob job;
  const auto refused = [&](const std::vector<std::string>& more, const std::string& model,
                           const std::vector<std::string>& said, int code = 78) {
    std::vector<std::string> sets = kTwoRanks;
    sets.insert(sets.end(), more.begin(), more.end());
    const test::ProcessResult result = test::run_longhaul(pretended(job, "no", model, sets));
    EXPECT_EQ(result.exit_code, code) << result.out;
    for (const std::string& part : said) EXPECT_TRUE(has(result.err, part)) << result.err;
  };
  refused({"checkpoint.enable=true"}, "", {"checkpoint.enable = true", "weights mean nothing"});
  refused({"validation.enable=true", "validation.corpus=" + job.corpus()}, "",
          {"validation.enable = true", "losses mean nothing"});
  refused({}, "flops=none", {"debug.pretend = ", "'flops=none'"});
  refused({"device.kind=cuda"}, "", {"device.kind = \"cuda\""});
  refused({}, "slow=2:3", {"slow=2:3", "there is no such rank; expected one of 0 to 1"}, 64);
}

/// Four attention servers in place, one of which takes three times as long as the others: once
/// speeds are measured it gets so much less that no step waits for it.
TEST(PretendedTraining, ASlowServerEndsWithLessWork) {
  const test::TrainingJob job;
  const auto steps_of = [&](const char* name, const char* model, int steps) {
    const test::ProcessResult result = test::run_longhaul(pretended(
        job, name, model,
        {"training.steps=" + std::to_string(steps), "training.seq_len=4096",
         "training.tokens_per_step=8192", "training.micro_batch_size=1", "comm.backend=loopback",
         "checkpoint.enable=false", "lr_scheduler.warmup_steps=0", "data.mask=causal",
         "parallelism.data_parallel_replicate_degree=2", "parallelism.context_parallel_degree=2",
         "parallelism.context_parallel_layout=packed",
         "parallelism.context_parallel_scheme=disaggregated",
         "attention_servers.measure_speeds=true"}));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return read_metrics(job.output(name, "metrics.jsonl")).steps;
  };
  const auto alike = steps_of("alike", "flops=1e10,rows=0,partial=1", 1);
  const auto slow = steps_of("slow", "flops=1e10,rows=0,partial=1,slow=3:3", 5);
  ASSERT_TRUE(alike.size() == 1 && slow.size() == 5);
  // All the work, shared by three servers and a third of one.
  const double ideal = 4 * alike[0].attention_seconds / (3 + 1.0 / 3);
  const auto slowest = [](const StepMetrics& step) {
    return step.attention_seconds + step.straggler_seconds;
  };
  EXPECT_GT(slowest(slow[1]), 2 * ideal) << "nothing is known yet when its plan is made";
  double least = INFINITY;
  for (std::size_t step = 2; step < slow.size(); ++step) {
    EXPECT_LT(slowest(slow[step]), 1.08 * ideal);
    EXPECT_GT(slow[step].seconds, slowest(slow[step]) * 0.999);
    least = std::min(least, slow[step].seconds);
  }
  EXPECT_LT(least, 1.15 * ideal) << "of " << ideal << " s";
}

/// Answers of a server that only takes time must not reach a job that computes, nor the other way.
TEST(PretendedTraining, ServersPretendAsTheirJobDoes) {
  const test::TrainingJob job;
  const std::string token = job.folder().file("token");
  std::ofstream(token) << "a secret of more than sixteen bytes";
  std::filesystem::permissions(token, std::filesystem::perms::owner_read);
  const auto exit_code = [&](const test::AttentionServer& server, bool pretends) {
    std::vector<std::string> sets = kTwoRanks;
    sets.insert(sets.end(), {"parallelism.context_parallel_layout=packed",
                             "parallelism.context_parallel_scheme=disaggregated",
                             "attention_servers.mode=external",
                             "attention_servers.addresses=[\"" + server.address() + "\"]",
                             "attention_servers.token_file=" + token});
    return test::run_longhaul(pretends ? pretended(job, "out", "flops=1e12", sets)
                                       : job.train("out", sets))
        .exit_code;
  };
  const test::AttentionServer computes("unix:" + job.folder().file("a"), token),
      pretends("unix:" + job.folder().file("b"), token, {"--pretend", "flops=1e12"});
  EXPECT_EQ(exit_code(computes, false), 0);
  EXPECT_EQ(exit_code(computes, true), 77);
  EXPECT_EQ(exit_code(pretends, true), 0);
  const MetricsLog log = read_metrics(job.output("out", "metrics.jsonl"));
  EXPECT_TRUE(std::isnan(log.steps.back().attention_seconds)) << "no rank attends";
  EXPECT_EQ(exit_code(pretends, false), 77);
  const test::ProcessResult ranked =
      test::run_longhaul({"serve", "--listen", "unix:" + job.folder().file("c"), "--token-file",
                          token, "--pretend", "slow=1:3"});
  EXPECT_EQ(ranked.exit_code, 64);
  EXPECT_TRUE(has(ranked.err, "a server is no rank; give slow=FACTOR")) << ranked.err;
}

/// A run that computes reports its stragglers in thread-CPU seconds, and no line calls it
/// pretended.
TEST(PretendedTraining, OthersAreNotCalledSo) {
  const test::TrainingJob job;
  const test::ProcessResult result = job.run(0, "out", kTwoRanks);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(has(result.out, "pretend")) << result.out;
  const MetricsLog log = read_metrics(job.output("out", "metrics.jsonl"));
  EXPECT_EQ(log.pretended, "");
  for (const StepMetrics& step : log.steps) {
    EXPECT_GT(step.attention_seconds, 0);
    EXPECT_GE(step.attention_imbalance, 1);
    EXPECT_LT(step.attention_imbalance, 2);
  }
}

/// q, k and v of one head, of zeros.
void write_case(const std::string& path, std::int64_t tokens) {
  hdf5::File file = hdf5::File::create(path);
  const std::vector<float> zeros(static_cast<std::size_t>(tokens * 8));
  for (const char* name : {"q", "k", "v", "dout"})
    file.write<float>(name, {1, tokens, 1, 8}, zeros);
  file.close();
}

TEST(PretendedReplay, TakesTheModelsTimeAndWritesNoResults) {
  const test::TempDirectory folder;
  const std::string input = folder.file("case.h5"), output = folder.file("result.h5");
  write_case(input, 300);
  const std::vector<std::string> replay = {"attention", input,        "--output",       output,
                                           "--ranks",   "3",          "--communicator", "loopback",
                                           "--layout",  "contiguous", "--force"};
  std::vector<std::string> arguments = replay;
  arguments.insert(arguments.end(), {"--pretend", "flops=1e18,seconds=0.01,slow=0:5"});
  const test::ProcessResult result = test::run_longhaul(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  // Calls forward and backward: 2, of rank 0 that takes five times as long, 4 and 6.
  EXPECT_TRUE(has(result.out,
                  "attention: 0.1000 s on the slowest rank, 1.50 of the mean; pretended (flops="))
      << result.out;
  const hdf5::File file = hdf5::File::open(output);
  EXPECT_FALSE(file.has("out") || file.has("lse") || file.has("dq"));
  EXPECT_TRUE(file.has_attribute("pretended"));
  const auto seconds = file.dataset("attention_seconds").read<double>();
  ASSERT_EQ(seconds.size(), 3u);
  EXPECT_NEAR(seconds[0], 0.1, 1e-6);
  EXPECT_NEAR(seconds[1], 0.04, 1e-6);
  EXPECT_NEAR(seconds[2], 0.06, 1e-6);
  EXPECT_EQ(file.dataset("attention_cpu_seconds").read<double>(), seconds);
  EXPECT_GE(file.float64_attribute("seconds"), 0.1);

  const test::ProcessResult computed = test::run_longhaul(replay);
  ASSERT_EQ(computed.exit_code, 0) << computed.err;
  EXPECT_TRUE(has(computed.out, "of the mean; seconds of its threads on the processor\n"));
  EXPECT_FALSE(hdf5::File::open(output).has_attribute("pretended"));
  EXPECT_TRUE(hdf5::File::open(output).has("out"));
}

TEST(PretendedReplay, IsRefusedWhereThereIsNoModel) {
  const test::TempDirectory folder;
  write_case(folder.file("case.h5"), 8);
  const auto refused = [&](const std::vector<std::string>& more, int code, const char* said) {
    std::vector<std::string> arguments = {"attention",         folder.file("case.h5"), "--output",
                                          folder.file("r.h5"), "--communicator",       "loopback"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const test::ProcessResult result = test::run_longhaul(arguments);
    EXPECT_EQ(result.exit_code, code) << result.out;
    EXPECT_TRUE(has(result.err, said)) << result.err;
  };
  refused({"--pretend", "--device", "cuda"}, 78, "--pretend is for the CPU");
  refused({"--pretend", "--kind", "linear"}, 78, "the time of a recurrence is not modelled");
  refused({"--pretend", "slow"}, 64, "'slow'");
  refused({"--pretend", "slow=1:2"}, 64, "there is no such rank; expected one of 0 to 0");
}

}  // namespace
}  // namespace longhaul::launch

// A step without labels updates nothing, ends no run and leaves no trace but the schedule's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "launch/report.h"
#include "launch/trainer.h"
#include "runtime/io/corpus.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::run_training;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 53;
constexpr std::int64_t kWithout = 3;  // the step that has no label

struct Grid {
  std::int64_t data, context;
};

/// Four sequences a step: those of step 3 have no label, and in every other step one has none.
test::RawSequence sequence(std::int64_t number) {
  test::RawSequence raw = test::random_sequence(kVocabulary, kSeqLen, number);
  if (number / 4 + 1 == kWithout || number % 4 == 2) std::ranges::fill(raw.labels, -1);
  return raw;
}

/// The same by weights, which are 0 where there is no label.
test::RawSequence weighed_sequence(std::int64_t number) {
  test::RawSequence raw = test::random_sequence(kVocabulary, kSeqLen, number);
  for (const std::int32_t label : sequence(number).labels)
    raw.label_weights.push_back(label < 0 ? 0.0f : 1.0f);
  return raw;
}

TrainConfig on(Grid grid, const std::string& shard, std::int64_t micro_batch_size = 1) {
  TrainConfig config = test::small_training(kSeqLen);
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.shard = shard;
  config.training.micro_batch_size = micro_batch_size;
  return config;
}

/// A checkpoint's tensors, and how many updates it says were made.
struct Saved {
  std::map<std::string, std::vector<float>> tensors;
  std::int64_t updates = 0;
};

Saved saved_of(const std::string& folder) {
  const runtime::Stream stream = runtime::Stream::cpu("host");
  const auto checkpoint =
      runtime::Checkpoint::open(folder, runtime::list_checkpoints(folder).back());
  Saved saved;
  saved.updates = checkpoint.metadata().optimizer_step;
  for (const runtime::TensorInfo& info : checkpoint.tensors()) {
    const runtime::Tensor tensor(info.sizes, info.dtype, stream);
    checkpoint.read(info.name, std::vector<std::int64_t>(info.sizes.size(), 0), tensor);
    saved.tensors[info.name].assign(tensor.as<float>(), tensor.as<float>() + tensor.elements());
  }
  return saved;
}

/// A rate as configured: linear over two steps, then half a cosine over the other 18.
double rate_of(std::int64_t step) {
  if (step <= 2) return 1e-3 * static_cast<double>(step) / 2;
  return 1e-4 + 9e-4 * 0.5 * (1 + std::cos(M_PI * static_cast<double>(step - 2) / 18));
}

TEST(UnlabelledStep, UpdatesNothingOnAnyGridAndLaterStepsKnowNothingOfIt) {
  const struct {
    Grid grid;
    const char* shard;
    std::int64_t micro;
  } cases[] = {{{1, 1}, "none", 1},      {{1, 3}, "optimizer", 1}, {{2, 2}, "none", 1},
               {{2, 2}, "optimizer", 2}, {{4, 1}, "optimizer", 1}, {{1, 5}, "none", 4}};
  for (const auto& [grid, shard, micro] : cases) {
    SCOPED_TRACE(runtime::concat("data ", grid.data, " x context ", grid.context, ", ", shard,
                                 ", micro batches of ", micro));
    const TrainConfig config = on(grid, shard, micro);
    const test::TempDirectory folder;
    const auto straight = run_training(config, kVocabulary, sequence,
                                       {.steps = 4, .save_to = (folder / "after").string()});
    ASSERT_EQ(straight.size(), 4u);
    EXPECT_TRUE(std::isnan(straight[2].loss));
    EXPECT_TRUE(std::isnan(straight[2].grad_norm));
    EXPECT_EQ(straight[2].labels, 0);
    EXPECT_GT(straight[2].area, 0);
    for (const std::size_t step : {0, 1, 3}) {
      EXPECT_TRUE(std::isfinite(straight[step].loss));
      EXPECT_GT(straight[step].labels, 0);
    }
    for (std::size_t step = 0; step < 4; ++step)
      EXPECT_DOUBLE_EQ(straight[step].learning_rate, rate_of(static_cast<std::int64_t>(step) + 1));

    // Weights, moments and their count are those of step 2, bit for bit.
    run_training(config, kVocabulary, sequence,
                 {.steps = 2, .save_to = (folder / "before").string()});
    run_training(config, kVocabulary, sequence,
                 {.steps = 3, .save_to = (folder / "without").string()});
    const Saved before = saved_of(folder / "before"), without = saved_of(folder / "without"),
                after = saved_of(folder / "after");
    EXPECT_EQ(without.tensors, before.tensors);
    EXPECT_EQ(before.updates, 2);
    EXPECT_EQ(without.updates, 2);
    EXPECT_EQ(after.updates, 3);

    // Step 4 from the definition: the rate of step 4, moments corrected as the third update's.
    double worst = 0;
    for (const auto& [name, old] : before.tensors) {
      if (name.starts_with("optimizer.")) continue;
      const auto& first = after.tensors.at("optimizer.exp_avg." + name);
      const auto& second = after.tensors.at("optimizer.exp_avg_sq." + name);
      const bool decays =
          name.find("norm") == std::string::npos && name.find("embed_tokens") == std::string::npos;
      for (std::size_t i = 0; i < old.size(); ++i) {
        const double update = first[i] / (1 - std::pow(0.9, 3)) /
                              (std::sqrt(second[i] / (1 - std::pow(0.95, 3))) + 1e-8);
        const double expected = old[i] - rate_of(4) * (update + (decays ? 0.1 * old[i] : 0));
        worst = std::max(worst, std::abs(after.tensors.at(name)[i] - expected));
      }
    }
    EXPECT_LE(worst, 4e-7);  // a rounding of values below 4; another count is 1e-4 away

    // A checkpoint written behind it resumes bit for bit, on its grid.
    const auto resumed = run_training(config, kVocabulary, sequence,
                                      {.steps = 1, .load_from = (folder / "without").string()});
    EXPECT_EQ(resumed[0].loss, straight[3].loss);
    EXPECT_EQ(resumed[0].grad_norm, straight[3].grad_norm);
    // Labels of weight 0 are none.
    const auto weighed = run_training(config, kVocabulary, weighed_sequence, {.steps = 4});
    for (const std::size_t step : {0, 1, 3}) EXPECT_EQ(weighed[step].loss, straight[step].loss);
    EXPECT_TRUE(std::isnan(weighed[2].loss));
  }
}

/// The program on a corpus whose third sequence of an epoch has no label, wherever that falls.
TEST(UnlabelledStep, IsSaidAndReportedByTheProgram) {
  const test::TempDirectory folder;
  {
    runtime::CorpusWriter writer(folder / "c.h5", 61, "bytes");
    for (int document = 0; document < 70; ++document) {
      const std::size_t length = document < 64 ? 1 : 64;  // 64 documents of one token
      const std::vector<std::int32_t> tokens(length, document % 61);
      writer.append(tokens);
      writer.end_document();
    }
    writer.finish();
  }
  const std::string config = folder.write(
      "run.toml", "[job]\noutput_dir = \"" + folder.file("out") +
                      "\"\n[model]\nhidden_size = 16\nintermediate_size = 32\n"
                      "num_hidden_layers = 1\nnum_attention_heads = 2\n[data]\ncorpus = \"" +
                      folder.file("c.h5") +
                      "\"\n[training]\nseq_len = 64\ntokens_per_step = 64\nsteps = 14\n"
                      "[parallelism]\ncontext_parallel_degree = 2\n[comm]\nbackend = "
                      "\"loopback\"\n[metrics]\nlog_freq = 100\n[checkpoint]\ninterval = 1\n");
  const auto result = test::run_longhaul({"train", config});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const MetricsLog log = read_metrics(folder.file("out/metrics.jsonl"));
  ASSERT_EQ(log.steps.size(), 14u);
  std::vector<std::int64_t> without;
  for (const StepMetrics& step : log.steps) {
    if (!unlabelled(step)) continue;
    without.push_back(step.step);
    EXPECT_TRUE(std::isnan(step.grad_norm) && std::isnan(step.mfu) &&
                std::isnan(step.tokens_per_second));
    EXPECT_NE(result.out.find("step " + std::to_string(step.step) +
                              "/14 | no labels, nothing updated | lr "),
              std::string::npos)
        << result.out;
  }
  ASSERT_EQ(without.size(), 2u);  // once an epoch
  EXPECT_NE(test::read_text(folder.file("out/metrics.jsonl")).find("\"loss\":null"),
            std::string::npos);
  const auto report = test::run_longhaul(
      {"report", folder.file("out/metrics.jsonl"), "--baseline", folder.file("out/metrics.jsonl"),
       "--max-parity", "1e-9", "--plot", folder.file("loss.svg"), "--max-entropy-ratio", "10"});
  EXPECT_EQ(report.exit_code, 0) << report.err;
  EXPECT_NE(report.out.find("without labels    2 steps, which updated nothing"), std::string::npos)
      << report.out;
  EXPECT_EQ(report.out.find("nan"), std::string::npos) << report.out;
  EXPECT_EQ(test::read_text(folder.file("loss.svg")).find("nan"), std::string::npos);

  // From a checkpoint just behind it the run goes on as it did.
  const std::string first = std::to_string(without.front());
  const auto line_of = [&](std::int64_t step) {
    const StepMetrics& metrics = log.steps.at(static_cast<std::size_t>(step - 1));
    return std::pair(metrics.loss, metrics.grad_norm);
  };
  if (without.front() < 13) {
    const auto again =
        test::run_longhaul({"train", config, "--set", "training.steps=14", "--set",
                            "checkpoint.keep_latest_k=0", "--set", "checkpoint.resume=\"never\""});
    ASSERT_EQ(again.exit_code, 0) << again.err;
    const auto resumed =
        test::run_longhaul({"train", config, "--set", "checkpoint.resume=" + first});
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    const MetricsLog rest = read_metrics(folder.file("out/metrics.jsonl"));
    for (const StepMetrics& step : rest.steps) {
      if (!unlabelled(step)) {
        EXPECT_EQ(std::pair(step.loss, step.grad_norm), line_of(step.step)) << step.step;
      }
    }
  }
}

StepMetrics step_with(std::int64_t number, double loss) {
  StepMetrics step;
  step.step = number;
  step.loss = step.grad_norm = step.tokens_per_second = step.mfu = loss;
  step.labels = std::isnan(loss) ? 0 : 10;
  step.seconds = 1;
  return step;
}

MetricsLog log_of(const std::vector<double>& losses) {
  MetricsLog log;
  for (const double loss : losses) log.steps.push_back(step_with(std::ssize(log.steps) + 1, loss));
  return log;
}

TEST(UnlabelledStep, IsNoDifferenceBetweenRunsThatBothHaveIt) {
  const double none = std::nan("");
  const MetricsLog run = log_of({none, 3, none, 2, none});
  EXPECT_EQ(compare_runs(run, run).loss, 0);
  EXPECT_EQ(compare_runs(run, run).steps, 5);
  EXPECT_TRUE(std::isinf(compare_runs(run, log_of({4, 3, none, 2, none})).loss));
  EXPECT_TRUE(std::isinf(compare_runs(log_of({4, 3, none, 2, none}), run).loss));
}

TEST(UnlabelledStep, IsLeftOutOfTheTableAndThePlot) {
  const double none = std::nan("");
  const std::string table = summary_table(log_of({none, 4, none, 3, none, 2, none}), 5, nullptr);
  EXPECT_NE(table.find("4.0000 nats a token (step 2)"), std::string::npos) << table;
  EXPECT_NE(table.find("2.0000 nats a token (step 6)"), std::string::npos) << table;
  EXPECT_NE(table.find("the last loss is 0.40 of it"), std::string::npos) << table;
  EXPECT_NE(table.find("4 steps, which updated nothing"), std::string::npos) << table;
  EXPECT_EQ(table.find("nan"), std::string::npos) << table;
  const std::string all = summary_table(log_of({none, none}), 5, nullptr);
  EXPECT_NE(all.find("2 steps, which updated nothing"), std::string::npos) << all;
  EXPECT_EQ(all.find("nan"), std::string::npos) << all;
  // Points with a gap on both sides are drawn: one line through all.
  const std::string svg =
      loss_plot_svg(log_of({none, 4, none, 3, none, 2, none}), {}, nullptr, "a");
  const auto path = svg.find("d=\"M", svg.find("stroke=\"#1f5fa8\""));
  ASSERT_NE(path, std::string::npos) << svg;
  const std::string drawn = svg.substr(path, svg.find('"', path + 3) - path);
  EXPECT_EQ(std::ranges::count(drawn, 'L'), 2) << drawn;
}

}  // namespace
}  // namespace longhaul::launch

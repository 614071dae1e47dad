#include "launch/metrics.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/build_info.h"
#include "runtime/error.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

using runtime::Error;
using runtime::ExitCode;

using nlohmann::json;

RunHeader header_of(std::int64_t context) {
  RunHeader header;
  header.config.training.steps = 100;
  header.config.data.corpus = "c.h5";
  header.grid.context = context;
  header.hosts = {"a", "b"};
  header.communicator = "Open MPI v4.1.4, package: test";
  header.parameters = 1234;
  header.unigram_entropy = 3.4671;
  header.devices = {"GPU 0 A of host a"};
  header.peak_flops = 1e11;
  header.peak_convention = "a matmul";
  header.flop_convention = "mask area";
  return header;
}

StepMetrics step_of(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 5.0 / 3.0 + static_cast<double>(step);  // no short decimal
  metrics.grad_norm = std::sqrt(2.0) / static_cast<double>(step);
  metrics.learning_rate = 1e-4 / 3.0;
  metrics.tokens = 8192;
  metrics.labels = 8000;
  metrics.tokens_per_second = 1e6 / 7;
  metrics.seconds = 0.1;
  metrics.mfu = 0.412;
  metrics.memory_bytes = std::int64_t{1} << 40;
  metrics.comm_seconds = 0.0061;
  metrics.epoch = 2;
  metrics.cursor = (std::int64_t{1} << 53) + 1;  // more than a double holds
  metrics.attention_area = 123;
  metrics.attention_seconds = 0.07 / 3;
  metrics.straggler_seconds = 0.01;
  metrics.attention_imbalance = 10.0 / 7;
  return metrics;
}

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream text(test::read_text(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

ExitCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::done;
}

class MetricsTest : public testing::Test {
 protected:
  void write_steps(std::int64_t first, std::int64_t last, std::int64_t resumed = 0,
                   std::int64_t context = 4) {
    MetricsWriter writer(path_, header_of(context), resumed);
    for (std::int64_t step = first; step <= last; ++step) writer.write(step_of(step));
  }
  test::TempDirectory folder_;
  std::string path_ = folder_.file("run/metrics.jsonl");
};

TEST(Console, LineIsTheDesigns) {
  StepMetrics metrics;
  metrics.step = 120;
  metrics.loss = 3.21451;
  metrics.grad_norm = 0.8421;
  metrics.learning_rate = 3e-4;
  metrics.tokens_per_second = 412300.6;
  metrics.seconds = 1;
  metrics.mfu = 0.4123;
  metrics.memory_bytes = static_cast<std::int64_t>(61.3 * (1 << 30));
  metrics.comm_seconds = 0.061;
  const ConsoleContext context{10000, static_cast<std::int64_t>(79.1 * (1 << 30)),
                               3 * 3600 + 12 * 60 + 20};
  EXPECT_EQ(console_line(metrics, context),
            "step 120/10000 | loss 3.2145 | gnorm 0.84 | lr 3.00e-04 | 412,301 tok/s | mfu 41.2% | "
            "mem 61.3/79.1 GiB | comm 6.1% | eta 3h12m");
  metrics.memory_bytes = 12 << 20;
  EXPECT_NE(console_line(metrics, context).find("| mem 12.0 MiB/79.1 GiB |"), std::string::npos)
      << console_line(metrics, context);
  metrics.comm_seconds = NAN;  // not measured
  EXPECT_NE(console_line(metrics, context).find("| comm - | eta"), std::string::npos)
      << console_line(metrics, context);
}

TEST(Console, LineOfAValidation) {
  ValidationMetrics metrics{120, 3.10219, 1'048'576, 1'048'000, 412'300.6, 2.54};
  EXPECT_EQ(console_line(metrics, 10000),
            "step 120/10000 | validation loss 3.1022 | 1,048,576 tokens in 3s | 412,301 tok/s");
  metrics.labels = 0;
  metrics.loss = NAN;
  EXPECT_NE(console_line(metrics, 10000).find("| validation without labels |"), std::string::npos);
}

TEST(Console, NumbersAndDurations) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(-123456), "-123,456");
  EXPECT_EQ(grouped(1234567890), "1,234,567,890");
  EXPECT_EQ(duration_text(0.4), "0s");
  EXPECT_EQ(duration_text(59.4), "59s");
  EXPECT_EQ(duration_text(59.6), "1m00s");
  EXPECT_EQ(duration_text(3599), "59m59s");
  EXPECT_EQ(duration_text(3600), "1h00m");
  EXPECT_EQ(duration_text(51 * 3600), "2d03h");
  EXPECT_EQ(duration_text(NAN), "?");
}

TEST_F(MetricsTest, HeaderThenOneRecordAStep) {
  write_steps(1, 3);
  const auto lines = lines_of(path_);
  ASSERT_EQ(lines.size(), 4u);
  const json header = json::parse(lines[0]);
  EXPECT_EQ(header["record"], "header");
  EXPECT_EQ(header["config"]["training"]["steps"], 100);
  EXPECT_EQ(header["build"]["digest"], runtime::build_digest());
  EXPECT_EQ(header["grid"]["context"], 4);
  EXPECT_EQ(header["hosts"], json({"a", "b"}));
  EXPECT_EQ(header["communicator"], "Open MPI v4.1.4, package: test");
  EXPECT_EQ(header["devices"], json({"GPU 0 A of host a"}));
  EXPECT_EQ(header["peak_convention"], "a matmul");
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const json record = json::parse(lines[i]);
    for (const char* key : {"step", "loss", "grad_norm", "learning_rate", "tokens",
                            "tokens_per_second", "seconds", "mfu", "memory_bytes"}) {
      EXPECT_TRUE(record.contains(key)) << key;
    }
    EXPECT_EQ(record["step"], i);
  }
}

TEST_F(MetricsTest, ReadsBackToTheLastBit) {
  write_steps(1, 5);
  const MetricsLog log = read_metrics(path_);
  ASSERT_EQ(log.steps.size(), 5u);
  for (std::int64_t step = 1; step <= 5; ++step)
    EXPECT_EQ(log.steps[static_cast<std::size_t>(step - 1)], step_of(step));
  EXPECT_EQ(log.unigram_entropy, 3.4671);
  EXPECT_EQ(log.ranks, 4);
}

TEST_F(MetricsTest, NotANumberSurvives) {
  {
    MetricsWriter writer(path_, header_of(1), 0);
    StepMetrics metrics = step_of(1);
    metrics.loss = NAN;
    writer.write(metrics);
  }
  EXPECT_TRUE(std::isnan(read_metrics(path_).steps.at(0).loss));
}

TEST_F(MetricsTest, ResumeCutsLaterStepsAndKeepsEarlierBytes) {
  write_steps(1, 10);
  const std::string before = test::read_text(path_);
  const auto old_lines = lines_of(path_);
  write_steps(7, 8, 6, 2);
  const std::string after = test::read_text(path_);
  std::size_t kept = 0;
  for (std::size_t i = 0; i <= 6; ++i) kept += old_lines[i].size() + 1;
  ASSERT_GT(after.size(), kept);
  EXPECT_EQ(after.substr(0, kept), before.substr(0, kept));
  const auto lines = lines_of(path_);
  ASSERT_EQ(lines.size(), 9u);
  EXPECT_EQ(json::parse(lines[7])["step"], 7);
  EXPECT_EQ(json::parse(lines[7])["run"]["grid"]["context"], 2);
  EXPECT_FALSE(json::parse(lines[8]).contains("run"));
  const MetricsLog log = read_metrics(path_);
  ASSERT_EQ(log.steps.size(), 8u);
  EXPECT_EQ(log.steps.back(), step_of(8));
}

TEST_F(MetricsTest, WhatAResumeGoesBackOverIsKeptAsAFileOfItsOwn) {
  write_steps(1, 10);
  write_steps(7, 12, 6, 2);  // goes back to 6, on another grid
  const std::vector<std::string> before = lines_of(path_);
  {
    const MetricsWriter writer(path_, header_of(8), 8);
    EXPECT_EQ(writer.kept_in(), path_ + ".2");
  }
  EXPECT_EQ(std::filesystem::file_size(path_), [&] {
    std::uintmax_t bytes = 0;  // the header and steps 1 to 8
    for (std::size_t i = 0; i <= 8; ++i) bytes += before[i].size() + 1;
    return bytes;
  }());
  // The first time steps 7 to 10 under the first header, then steps 9 to 12 under the second.
  EXPECT_EQ(lines_of(path_ + ".1")[0], before[0]);
  const MetricsLog first = read_metrics(path_ + ".1"), second = read_metrics(path_ + ".2");
  ASSERT_EQ(first.steps.size(), 4u);
  EXPECT_EQ(first.steps.front(), step_of(7));
  EXPECT_EQ(first.steps.back(), step_of(10));
  EXPECT_EQ(first.ranks, 4);
  const std::vector<std::string> kept = lines_of(path_ + ".2");
  EXPECT_EQ(json::parse(kept.at(0)), json::parse(before[7])["run"]) << "what they were under";
  EXPECT_EQ(std::vector(kept.begin() + 1, kept.end()),
            std::vector(before.begin() + 9, before.end()));
  EXPECT_EQ(second.ranks, 2);
}

TEST_F(MetricsTest, GoingOnFromTheLastRowKeepsNothingAside) {
  write_steps(1, 6);
  const std::string before = test::read_text(path_);
  test::write_text(path_, before + "{\"record\":\"step\",\"st");  // killed as it wrote a row
  const MetricsWriter writer(path_, header_of(4), 6);
  EXPECT_EQ(writer.kept_in(), "");
  EXPECT_EQ(test::read_text(path_), before);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".1"));
}

TEST_F(MetricsTest, ARunThatWasKilledAsItWroteItsHeaderIsNothingToGoOnWith) {
  for (const std::string& torn : {std::string(), std::string("{\"record\":\"hea")}) {
    std::filesystem::create_directories(folder_ / "run");
    test::write_text(path_, torn);
    write_steps(6, 7, 5);
    EXPECT_EQ(read_metrics(path_).steps.size(), 2u);
  }
  EXPECT_EQ(test::read_text(path_ + ".1"), "");
  EXPECT_EQ(test::read_text(path_ + ".2"), "{\"record\":\"hea");
}

TEST_F(MetricsTest, WhatCannotBeKeptIsNotCutOff) {
  write_steps(1, 10);
  const std::string before = test::read_text(path_);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit full{100, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const ExitCode code = code_of([&] { MetricsWriter(path_, header_of(4), 6); });
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, old_handler);
  EXPECT_EQ(code, ExitCode::io);
  EXPECT_EQ(test::read_text(path_), before);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".1"));
}

ValidationMetrics validation_of(std::int64_t step) {
  return {step, 7.0 / 3.0, 1000, 990, 1e6 / 3, 0.003};
}

TEST_F(MetricsTest, ValidationsAreRowsOfTheirOwn) {
  {
    MetricsWriter writer(path_, header_of(4), 0);
    EXPECT_EQ(writer.validated_step(), 0);
    for (std::int64_t step = 1; step <= 6; ++step) {
      writer.write(step_of(step));
      if (step % 2 == 0) writer.write(validation_of(step));
    }
  }
  MetricsLog log = read_metrics(path_);
  EXPECT_EQ(log.steps.size(), 6u);
  EXPECT_EQ(log.validations, (std::vector{validation_of(2), validation_of(4), validation_of(6)}));
  const json row = json::parse(lines_of(path_)[3]);
  EXPECT_EQ(row["record"], "validation");
  EXPECT_FALSE(row.contains("grad_norm"));
  {
    // One that was not done when the run went on: its row begins the resumed run.
    MetricsWriter writer(path_, header_of(2), 5);
    EXPECT_EQ(writer.validated_step(), 4);
    writer.write(validation_of(5));
    writer.write(step_of(6));
  }
  EXPECT_EQ(json::parse(lines_of(path_)[8])["run"]["grid"]["context"], 2);
  EXPECT_FALSE(json::parse(lines_of(path_)[9]).contains("run"));
  log = read_metrics(path_ + ".1");
  EXPECT_EQ(log.steps.size(), 1u);
  EXPECT_EQ(log.validations, std::vector{validation_of(6)});
  EXPECT_EQ(MetricsWriter(path_, header_of(2), 4).validated_step(), 4);
}

TEST_F(MetricsTest, ResumeDropsATornLine) {
  write_steps(1, 3);
  const std::string whole = test::read_text(path_);
  for (const std::size_t cut : {whole.size() - 1, whole.size() - 20}) {
    test::write_text(path_, whole.substr(0, cut));
    EXPECT_EQ(read_metrics(path_).steps.size(), 2u);
    write_steps(4, 4, 3);
    const MetricsLog log = read_metrics(path_);
    ASSERT_EQ(log.steps.size(), 3u);
    EXPECT_EQ(log.steps.back().step, 4);
  }
}

TEST_F(MetricsTest, ResumeWithoutAFileStartsOne) {
  write_steps(6, 6, 5);
  EXPECT_EQ(read_metrics(path_).steps.size(), 1u);
}

TEST_F(MetricsTest, AFreshRunKeepsTheOldFile) {
  write_steps(1, 3);
  const std::string first = test::read_text(path_);
  write_steps(1, 2);
  write_steps(1, 1);
  EXPECT_EQ(test::read_text(path_ + ".1"), first);
  EXPECT_EQ(read_metrics(path_ + ".2").steps.size(), 2u);
  EXPECT_EQ(read_metrics(path_).steps.size(), 1u);
}

TEST_F(MetricsTest, DamageIsNamed) {
  write_steps(1, 3);
  const auto lines = lines_of(path_);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", ":1:"},
      {"{}\n", ":1:"},
      {lines[1] + "\n", ":1:"},
      {lines[0] + "\n" + lines[1] + "\nnot json\n" + lines[2] + "\n", ":3:"},
      {lines[0] + "\n[1, 2]\n", ":2:"},
      {lines[0] + "\n{\"step\": 1}\n", ":2:"},
      {lines[0] + "\n{\"step\": \"1\", \"loss\": 2}\n", ":2:"},
      {lines[0] + "\n" + std::string(40, '\0') + "\n", ":2:"},
  };
  for (const auto& [text, place] : cases) {
    test::write_text(path_, text);
    try {
      read_metrics(path_);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
      EXPECT_NE(std::string(error.what()).find(path_ + place), std::string::npos) << error.what();
    }
  }
}

TEST_F(MetricsTest, FailuresOfTheFileSystemAreIoErrors) {
  EXPECT_EQ(code_of([&] { read_metrics(folder_.file("absent")); }), ExitCode::io);
  const std::string file = folder_.write("file", "");
  EXPECT_EQ(code_of([&] { MetricsWriter(file + "/metrics.jsonl", header_of(1), 0); }),
            ExitCode::io);

  MetricsWriter writer(path_, header_of(1), 0);
  writer.write(step_of(1));
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit full{std::filesystem::file_size(path_) + 10, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const ExitCode code = code_of([&] { writer.write(step_of(2)); });
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, old_handler);
  EXPECT_EQ(code, ExitCode::io);
  EXPECT_EQ(read_metrics(path_).steps.size(), 1u);  // what was torn is left out
}

}  // namespace
}  // namespace longhaul::launch

#include "launch/report.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "launch/plot.h"
#include "runtime/error.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

MetricsLog falling_run(std::int64_t steps, double factor, std::int64_t ranks) {
  MetricsLog log;
  log.ranks = ranks;
  for (std::int64_t step = 1; step <= steps; ++step) {
    StepMetrics metrics;
    metrics.step = step;
    const double t = static_cast<double>(step - 1);
    metrics.loss = (2.6 + 2.95 * std::exp(-t / 18) + 0.06 * std::sin(t * 1.7)) * factor;
    metrics.grad_norm = 1;
    metrics.tokens_per_second = step == 1 ? 10 : 40000 + static_cast<double>(step);
    metrics.mfu = 0.31;
    metrics.seconds = 0.2;
    metrics.memory_bytes = step * (1 << 20);
    log.steps.push_back(metrics);
  }
  return log;
}

// The coordinates of every path drawn with this colour.
std::vector<PlotPoint> drawn(const std::string& svg, const std::string& color) {
  const std::regex path("<path fill=\"none\" stroke=\"" + color + "\"[^>]* d=\"([^\"]*)\"");
  const std::regex pair("[ML](-?[0-9.]+),(-?[0-9.]+)");
  std::vector<PlotPoint> points;
  for (std::sregex_iterator p(svg.begin(), svg.end(), path), none; p != none; ++p) {
    const std::string d = (*p)[1];
    for (std::sregex_iterator c(d.begin(), d.end(), pair); c != none; ++c) {
      points.push_back({std::stod((*c)[1]), std::stod((*c)[2])});
    }
  }
  return points;
}

TEST(RoundTicks, CoverTheRangeWithRoundSteps) {
  for (const auto& [low, high] :
       {std::pair(0.0, 1.0), std::pair(2.41, 5.63), std::pair(1.0, 100.0), std::pair(-3e-7, 2e-7),
        std::pair(1e9, 3e9), std::pair(5.0, 5.0), std::pair(0.0, 0.0)}) {
    for (const int count : {3, 6, 10}) {
      const std::vector<double> ticks = round_ticks(low, high, count);
      ASSERT_GE(ticks.size(), 2u);
      EXPECT_LE(ticks.front(), low);
      EXPECT_GE(ticks.back(), high);
      EXPECT_LE(ticks.size(), static_cast<std::size_t>(count) + 3);
      const double step = ticks[1] - ticks[0];
      const double mantissa = step / std::pow(10.0, std::floor(std::log10(step) + 1e-9));
      EXPECT_TRUE(std::abs(mantissa - 1) < 1e-6 || std::abs(mantissa - 2) < 1e-6 ||
                  std::abs(mantissa - 5) < 1e-6)
          << step;
    }
  }
}

TEST(LinePlot, DrawsInsideTheAxesAndDownwards) {
  const MetricsLog run = falling_run(100, 1, 4);
  const std::string svg = loss_plot_svg(run, 3.47, nullptr, "Training loss");
  const auto points = drawn(svg, "#1f5fa8");
  ASSERT_EQ(points.size(), 100u);
  for (std::size_t i = 0; i < points.size(); ++i) {
    EXPECT_GE(points[i].x, 72);
    EXPECT_LE(points[i].x, 776);
    EXPECT_GE(points[i].y, 48);
    EXPECT_LE(points[i].y, 424);
    if (i > 0) {
      EXPECT_GT(points[i].x, points[i - 1].x);
    }
  }
  EXPECT_GT(points.back().y, points.front().y);  // pixels grow downwards, the loss falls
  const auto entropy = drawn(svg, "#888");
  ASSERT_EQ(entropy.size(), 2u);
  EXPECT_EQ(entropy[0].y, entropy[1].y);
  EXPECT_NE(svg.find("unigram entropy of the corpus, 3.470"), std::string::npos);
  EXPECT_NE(svg.find("loss (nats a token)"), std::string::npos);
  EXPECT_NE(svg.find("Training loss"), std::string::npos);
  EXPECT_NE(svg.find("loss, 4 ranks"), std::string::npos);
}

TEST(LinePlot, SurvivesHardInput) {
  MetricsLog run = falling_run(5, 1, 1);
  run.steps[2].loss = NAN;
  run.steps[3].loss = INFINITY;
  EXPECT_EQ(drawn(loss_plot_svg(run, std::nullopt, nullptr, "a"), "#1f5fa8").size(), 3u);
  const MetricsLog one = falling_run(1, 1, 1);
  const MetricsLog none;
  for (const std::string& svg :
       {loss_plot_svg(one, std::nullopt, &none, "<&\"b>"), line_plot_svg({})}) {
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
  }
  EXPECT_NE(loss_plot_svg(one, {}, nullptr, "<&\"b>").find("&lt;&amp;&quot;b&gt;"),
            std::string::npos);
}

TEST(Parity, IsTheLargestRelativeDifference) {
  MetricsLog run = falling_run(20, 1, 4);
  const MetricsLog baseline = falling_run(10, 1, 1);
  EXPECT_EQ(compare_runs(run, baseline).steps, 10);
  EXPECT_EQ(compare_runs(run, baseline).loss, 0);
  run.steps[4].loss *= 1 + 1e-6;
  run.steps[15].loss *= 2;  // past the baseline's end
  run.steps[7].grad_norm = 1.5;
  EXPECT_NEAR(compare_runs(run, baseline).loss, 1e-6, 1e-12);
  EXPECT_EQ(compare_runs(run, baseline).grad_norm, 0.5);
  run.steps[3].loss = NAN;
  EXPECT_TRUE(std::isinf(compare_runs(run, baseline).loss));
  EXPECT_EQ(compare_runs(run, MetricsLog{}).steps, 0);
}

TEST(UnevenSteps, NamesWhatIsMissingOrThereTwice) {
  const auto log = [](const std::vector<std::int64_t>& steps,
                      const std::vector<std::int64_t>& validations = {}) {
    MetricsLog log;
    for (const std::int64_t step : steps) log.steps.emplace_back().step = step;
    for (const std::int64_t step : validations) log.validations.emplace_back().step = step;
    return log;
  };
  EXPECT_EQ(uneven_steps({}), "");
  EXPECT_EQ(uneven_steps(log({1, 2, 3, 4}, {2, 4})), "");
  EXPECT_EQ(uneven_steps(log({1, 3})), "step 2 is missing");
  EXPECT_EQ(uneven_steps(log({1, 2, 6, 7, 1009})), "steps 3 to 5 and 8 to 1,008 are missing");
  EXPECT_EQ(uneven_steps(log({9, 10})), "steps 1 to 8 are missing");
  EXPECT_EQ(uneven_steps(log({1, 2, 3, 4, 3, 4, 5, 4})), "steps 3 to 4 are there twice or more");
  EXPECT_EQ(uneven_steps(log({1, 2, 2, 5}, {2, 2})),
            "steps 3 to 4 are missing; step 2 is there twice or more; the validation of step 2 is "
            "there twice or more");
  std::vector<std::int64_t> odd;
  for (std::int64_t step = 1; step < 40; step += 2) odd.push_back(step);
  EXPECT_EQ(uneven_steps(log(odd)),
            "steps 2, 4, 6, 8, 10, 12, 14, 16 and others, 19 in all are missing");
  EXPECT_EQ(uneven_steps(log({std::int64_t{1} << 62, -5, 0})),
            "steps 1 to 4,611,686,018,427,387,903 are missing");
  const std::string table = summary_table(log({1, 3}), {}, nullptr);
  EXPECT_NE(table.find("steps             step 2 is missing\n"), std::string::npos) << table;
  const MetricsLog twice = log({1, 1});
  EXPECT_NE(summary_table(log({1}), {}, &twice).find("baseline's steps  step 1 is there twice"),
            std::string::npos);
}

TEST(ValidationLoss, IsInTheTableAndThePlot) {
  MetricsLog run = falling_run(30, 1, 4);
  EXPECT_EQ(summary_table(run, {}, nullptr).find("validation"), std::string::npos);
  for (const std::int64_t step : {10, 20, 30})
    run.validations.push_back({step, step == 20 ? 2.7 : 3.0, 1000, 990, 1e6, 0.001});
  const std::string table = summary_table(run, {}, nullptr);
  EXPECT_NE(table.find("validation loss   3.0000 nats a token (step 30); the best of 3 is 2.7000 "
                       "(step 20)\n"),
            std::string::npos)
      << table;
  const std::string svg = loss_plot_svg(run, std::nullopt, nullptr, "Training loss");
  const auto points = drawn(svg, "#2a8a3e");
  ASSERT_EQ(points.size(), 3u);
  EXPECT_GT(points[1].y, points[0].y);
  EXPECT_EQ(points[2].y, points[0].y);
  EXPECT_EQ(points[2].x, drawn(svg, "#1f5fa8").back().x);
  EXPECT_NE(svg.find("<circle"), std::string::npos);
  EXPECT_NE(svg.find("validation loss"), std::string::npos);
  run.steps.clear();  // of a run that was finished before it was first validated
  EXPECT_NE(summary_table(run, {}, nullptr).find("3.0000 nats a token"), std::string::npos);
}

TEST(SummaryTable, SaysWhatAPersonAsks) {
  const MetricsLog run = falling_run(100, 1, 4);
  const MetricsLog baseline = falling_run(10, 1 + 3e-7, 1);
  const std::string table = summary_table(run, 3.47, &baseline);
  for (const std::string& part :
       {std::string("5.5500 nats a token (step 1)"),
        fmt::format("{:.4f} nats a token (step 100)", run.steps.back().loss),
        std::string("3.4700 nats a token; the last loss is 0.74 of it"),
        std::string("40,051 (median step)"), std::string("31.0%"), std::string("100.0 MiB"),
        std::string("20s in 100 steps"),
        std::string("with 1 rank over 10 steps: losses differ by at most 3.0e-07")}) {
    EXPECT_NE(table.find(part), std::string::npos) << part << "\n" << table;
  }
  EXPECT_NE(summary_table({}, {}, nullptr).find("none recorded"), std::string::npos);
}

TEST(SummaryTable, AValidationWithoutLabelsIsNoNumber) {
  MetricsLog run = falling_run(4, 1, 1);
  ValidationMetrics validation;
  validation.step = 2;
  validation.loss = 2.5;
  run.validations.push_back(validation);
  validation.step = 4;
  validation.loss = std::nan("");
  run.validations.push_back(validation);
  const std::string table = summary_table(run, {}, nullptr);
  EXPECT_NE(
      table.find("validation loss   without labels (step 4); the best of 2 is 2.5000 (step 2)"),
      std::string::npos)
      << table;
}

TEST(ReportVerb, WritesThePlotAndTheTable) {
  const test::TempDirectory folder;
  const std::string metrics = folder.file("metrics.jsonl");
  {
    RunHeader header;
    header.unigram_entropy = 3.0;
    MetricsWriter writer(metrics, header, 0);
    for (const StepMetrics& step : falling_run(30, 1, 1).steps) writer.write(step);
  }
  const auto result = test::run_longhaul(
      {"report", metrics, "--baseline", metrics, "--plot", folder.file("loss.svg")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("losses differ by at most 0.0e+00"), std::string::npos) << result.out;
  EXPECT_TRUE(test::read_text(folder.file("loss.svg")).starts_with("<svg"));
  const std::vector<std::string> again{"report", metrics, "--plot", folder.file("loss.svg")};
  const auto refused = test::run_longhaul(again);
  EXPECT_EQ(refused.exit_code, 64) << refused.err;
  EXPECT_NE(refused.err.find("--force"), std::string::npos) << refused.err;
  std::vector<std::string> forced = again;
  forced.push_back("--force");
  EXPECT_EQ(test::run_longhaul(forced).exit_code, 0);
  // Its own inputs are never the plot, by whichever name.
  std::filesystem::copy_file(metrics, folder.file("other.jsonl"));
  std::filesystem::create_symlink("other.jsonl", folder.file("link"));
  for (const std::string& plot : {metrics, folder.file("other.jsonl"), folder.file("link")}) {
    const std::string before = test::read_text(plot);
    const auto own = test::run_longhaul(
        {"report", metrics, "--baseline", folder.file("other.jsonl"), "--plot", plot, "--force"});
    EXPECT_EQ(own.exit_code, 64) << own.err;
    EXPECT_NE(own.err.find("--plot " + plot + ": is among the inputs"), std::string::npos)
        << own.err;
    EXPECT_EQ(test::read_text(plot), before);
  }
  struct Limit {
    std::vector<std::string> options;
    int exit_code;
    const char* says;
  };
  for (const auto& [options, exit_code, says] : std::initializer_list<Limit>{
           {{"--max-parity", "0"}, 64, "--max-parity needs --baseline"},
           {{"--max-parity", "1e-5"}, 64, "--max-parity needs --baseline"},
           {{"--max-parity", "-1", "--baseline", metrics},
            64,
            "--max-parity is -1; expected a number of at least 0"},
           {{"--max-parity", "nan", "--baseline", metrics}, 64, "--max-parity is nan"},
           {{"--max-parity", "inf", "--baseline", metrics}, 64, "--max-parity is inf"},
           {{"--max-parity", "0", "--baseline", metrics}, 0, ""},
           {{"--max-entropy-ratio", "nan"},
            64,
            "--max-entropy-ratio is nan; expected a number above 0"},
           {{"--max-entropy-ratio", "0"}, 64, "--max-entropy-ratio is 0"},
           {{"--max-entropy-ratio", "-0.5"}, 64, "--max-entropy-ratio is -0.5"},
           {{"--max-entropy-ratio", "1e-9"}, 70, "of the unigram entropy; expected at most 1e-09"},
           {{"--max-entropy-ratio", "100"}, 0, ""}}) {
    std::vector<std::string> arguments = {"report", metrics, "--plot", folder.file("limit.svg")};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const auto judged = test::run_longhaul(arguments);
    EXPECT_EQ(judged.exit_code, exit_code) << options[0] << options[1] << judged.err;
    EXPECT_NE(judged.err.find(says), std::string::npos) << judged.err;
    // What is refused is refused before anything is written.
    EXPECT_EQ(std::filesystem::remove(folder.file("limit.svg")), exit_code != 64) << options[1];
  }
  EXPECT_EQ(test::run_longhaul({"report", folder.file("absent")}).exit_code, 74);
  EXPECT_EQ(test::run_longhaul({"report", folder.file("loss.svg")}).exit_code, 65);
  EXPECT_EQ(
      test::run_longhaul({"report", metrics, "--plot", folder.file("no/folder.svg")}).exit_code,
      74);
}

}  // namespace
}  // namespace longhaul::launch

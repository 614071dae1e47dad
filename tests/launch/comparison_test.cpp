// Reports of several runs.
#include "launch/comparison.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "launch/plot.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A run of 20 steps whose losses are `loss`, 2 in the last tenth, with a first step that is slow.
NamedRun run_of(const std::string& name, double loss, std::int64_t seq_len, double seconds) {
  NamedRun run{name, name + ".jsonl", {}};
  run.log.header_json = fmt::format(
      R"({{"parameters":1234567,"config":{{"model":{{"architecture":"llama","num_hidden_layers":3,)"
      R"("layer_types":[]}},"training":{{"seq_len":{}}}}}}})",
      seq_len);
  for (std::int64_t step = 1; step <= 20; ++step) {
    StepMetrics metrics;
    metrics.step = step;
    metrics.loss = step > 18 ? 2 + (step == 19 ? 0.5 : -0.5) : loss;
    metrics.tokens = 1000;
    metrics.labels = 990;
    metrics.seconds = step == 1 ? 60 : seconds;
    metrics.tokens_per_second = 1000 / metrics.seconds;
    metrics.memory_bytes = step << 20;
    metrics.straggler_seconds = seconds / 20;
    metrics.attention_imbalance = 1.25;
    run.log.steps.push_back(metrics);
  }
  return run;
}

std::vector<PlotPoint> drawn(const std::string& svg, const std::string& color) {
  const std::regex path("<path fill=\"none\" stroke=\"" + color + "\"[^>]* d=\"([^\"]*)\"");
  const std::regex pair("[ML](-?[0-9.]+),(-?[0-9.]+)");
  std::vector<PlotPoint> points;
  for (std::sregex_iterator p(svg.begin(), svg.end(), path), none; p != none; ++p) {
    const std::string d = (*p)[1];
    for (std::sregex_iterator c(d.begin(), d.end(), pair); c != none; ++c)
      points.push_back({std::stod((*c)[1]), std::stod((*c)[2])});
  }
  return points;
}

TEST(Comparison, ARowARun) {
  const std::vector<NamedRun> runs = {run_of("a|b", 5, 2048, 0.5), run_of("GDN", 4, 16384, 0.25)};
  const std::string table = comparison_table(runs);
  EXPECT_TRUE(has(table,
                  "| a\\|b | 1,234,567 | 2,048 | 20,000 | 5.0000 | 1.5000 | 2.0000 | 0.5 | 0.025 | "
                  "1.25 | 2,000 | 20.0 MiB |\n"))
      << table;
  EXPECT_TRUE(has(table, "| GDN | 1,234,567 | 16,384 | 20,000 | 4.0000 | 1.5000 | 2.0000 | 0.25 |"))
      << table;
  EXPECT_FALSE(has(table, "missing"));
  std::vector<NamedRun> holes = runs;
  holes[1].log.steps.erase(holes[1].log.steps.begin() + 4);
  EXPECT_TRUE(has(comparison_table(holes), "\nGDN (GDN.jsonl): step 5 is missing\n"));
  holes[0].log = {};  // neither steps nor a header that says anything
  EXPECT_TRUE(has(comparison_table(holes), "| a\\|b | - | - | 0 | - | - | - | - | - | - | - |"));
  holes[1].log.steps.clear();  // of an older build, and pretended
  StepMetrics& older = holes[1].log.steps.emplace_back();
  older.step = older.labels = 1;
  older.seconds = 2;
  older.loss = NAN;
  EXPECT_TRUE(has(comparison_table(holes), "| - | - | - | 2 | - | - | 0 |"))
      << comparison_table(holes);
}

TEST(Comparison, ACurveAndALegendEntryARun) {
  std::vector<NamedRun> runs = {run_of("softmax", 5, 2048, 0.5), run_of("GDN", 4, 2048, 0.5)};
  const std::string svg = losses_plot_svg(runs, 3.47, "Training loss");
  const auto first = drawn(svg, "#1f5fa8"), second = drawn(svg, "#e07b00");
  ASSERT_EQ(first.size(), 20u);
  ASSERT_EQ(second.size(), 20u);
  EXPECT_LT(first[0].y, second[0].y);  // pixels grow downwards: 5 is above 4
  EXPECT_EQ(first[19].y, second[19].y);
  for (const char* part : {">softmax<", ">GDN<", "unigram entropy of the corpus, 3.470"})
    EXPECT_TRUE(has(svg, part)) << part;
  runs[1].name = "softmax";
  runs[1].log.validations.push_back({20, 2.5, 1000, 990, 1, 1});
  const std::string same = losses_plot_svg(runs, {}, "");
  for (const char* part :
       {">softmax, softmax.jsonl<", ">softmax, GDN.jsonl<", ">softmax, GDN.jsonl, validation<"})
    EXPECT_TRUE(has(same, part)) << part;
}

TEST(Comparison, RunsOfOneNameMakeOneCurveOfStepTimes) {
  const std::vector<NamedRun> runs = {run_of("softmax", 5, 4096, 3), run_of("GDN", 5, 1024, 1),
                                      run_of("softmax", 5, 1024, 1), run_of("GDN", 5, 4096, 1),
                                      run_of("softmax", 5, 2048, 2)};
  const std::string svg = step_times_plot_svg(runs, "Step time");
  const auto softmax = drawn(svg, "#1f5fa8"), gdn = drawn(svg, "#e07b00");
  ASSERT_EQ(softmax.size(), 3u);
  ASSERT_EQ(gdn.size(), 2u);
  EXPECT_LT(softmax[0].x, softmax[1].x);
  EXPECT_LT(softmax[1].x, softmax[2].x);
  EXPECT_EQ(softmax[0].y, gdn[0].y);
  EXPECT_EQ(gdn[0].y, gdn[1].y);
  // The axis begins at 0: 3 seconds are three times as high above it as 1.
  EXPECT_NEAR(424 - softmax[2].y, 3 * (424 - softmax[0].y), 0.5);
  // The legend leaves the curve that rises to the right upper corner alone.
  const std::regex legend("<rect class=\"legend\" x=\"([0-9.]+)\"");
  std::smatch at;
  ASSERT_TRUE(std::regex_search(svg, at, legend));
  EXPECT_EQ(at[1], "80.0");
}

TEST(Comparison, NamesAreGivenOrFollowFromTheModel) {
  const test::TempDirectory folder;
  const std::string path = folder.file("a=b.jsonl");
  const auto header = [&](const std::string& text) { folder.write("a=b.jsonl", text + "\n"); };
  header(R"({"record":"header","config":{"model":{"architecture":"qwen3_next","layer_types":)"
         R"(["linear_attention","full_attention","linear_attention"]}}})");
  EXPECT_EQ(read_named_run(path).name, "qwen3_next, 2 linear_attention, 1 full_attention");
  EXPECT_EQ(read_named_run("GDN=" + path).name, "GDN");
  EXPECT_EQ(read_named_run("GDN=" + path).path, path);
  header(
      R"({"record":"header","config":{"model":{"architecture":"llama","num_hidden_layers":1}}})");
  EXPECT_EQ(read_named_run(path).name, "llama, 1 layer");
  header(R"({"record":"header","config":7})");
  EXPECT_EQ(read_named_run(path).name, "a model of no name");
  EXPECT_EQ(named_path("runs/lr=2/metrics.jsonl").first, "");
  EXPECT_EQ(named_path("=x").second, "=x");
}

TEST(ReportVerb, ComparesRuns) {
  const test::TempDirectory folder;
  for (const char* name : {"a", "b"}) {
    RunHeader header;
    header.unigram_entropy = 3.0;
    MetricsWriter writer(folder.file(name), header, 0);
    for (const StepMetrics& step : run_of(name, 5, 1, 1).log.steps) writer.write(step);
  }
  const std::string a = folder.file("a"), b = "second=" + folder.file("b");
  const std::string losses = folder.file("losses.svg"), times = folder.file("times.svg");
  const auto report = [&](std::vector<std::string> options) {
    options.insert(options.begin(), {"report", a, b});
    return test::run_longhaul(options);
  };
  const auto result = report({"--plot", losses, "--plot-times", times});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "| second |")) << result.out;
  EXPECT_TRUE(has(test::read_text(losses), ">second<"));
  EXPECT_TRUE(has(test::read_text(losses), "unigram entropy of the corpus, 3.000"));
  EXPECT_TRUE(has(test::read_text(times), "</svg>"));
  EXPECT_EQ(report({"--plot-times", times}).exit_code, 64);
  EXPECT_EQ(report({"--plot-times", folder.file("b"), "--force"}).exit_code, 64);
  const auto one_file = report({"--plot", losses, "--plot-times", losses, "--force"});
  EXPECT_EQ(one_file.exit_code, 64);
  EXPECT_TRUE(has(one_file.err, "is --plot's file too")) << one_file.err;
  const auto baseline = report({"--baseline", a});
  EXPECT_EQ(baseline.exit_code, 64);
  EXPECT_TRUE(has(baseline.err, "METRICS are 2 runs")) << baseline.err;
  const auto limit = report({"--max-entropy-ratio", "0.1"});
  EXPECT_EQ(limit.exit_code, 70);
  EXPECT_TRUE(has(limit.err, "the last loss is 0.5 of the unigram entropy")) << limit.err;
  EXPECT_EQ(test::run_longhaul({"report", a, "gone=" + folder.file("gone")}).exit_code, 74);
}

}  // namespace
}  // namespace longhaul::launch

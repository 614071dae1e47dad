// `longhaul bench layouts`: figures known by hand, and what it refuses.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "parallel/layout.h"
#include "tests/support/document_mixes.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

struct Row {
  std::string chunk;
  double area_worst = 0, area_mean = 0;
  int row_difference = 0;
  double forward_most = 0, forward_mean = 0, backward_most = 0, backward_mean = 0;  // MB
  double needed = 0;                                                                // MB
  double tile_use = 0;                                                              // per cent
  double tiles_worst = 0, plan_ms = 0, program_ms = 0, prepare_ms = 0, bind_us = 0;
};

test::ProcessResult bench(std::vector<std::string> options) {
  options.insert(options.begin(), {"bench", "layouts"});
  return test::run_longhaul(options, {});
}

std::map<std::string, Row> rows(const std::vector<std::string>& options) {
  const test::ProcessResult result = bench(options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::istringstream text(result.out);
  std::map<std::string, Row> rows;
  for (std::string line; std::getline(text, line);) {
    std::istringstream fields(line);
    std::string name, percent;
    Row row;
    fields >> name >> row.chunk >> row.area_worst >> row.area_mean >> row.row_difference >>
        row.forward_most >> row.forward_mean >> row.backward_most >> row.backward_mean >>
        row.needed >> row.tile_use >> percent;
    if (percent != "%") continue;  // a heading
    fields >> row.tiles_worst >> row.plan_ms >> row.program_ms >> row.prepare_ms >> row.bind_us;
    EXPECT_GT(row.prepare_ms, 0) << line;  // of two calls, plans included
    EXPECT_TRUE(fields) << line;
    rows[name] = row;
  }
  EXPECT_EQ(rows.size(), parallel::layout_kinds().size()) << result.out;
  return rows;
}

constexpr double kMegabyte = 1e6;
constexpr double kKeyBytes = 8 * 2 * 128 * 2;  // 8 heads, key and value, 128 elements of bfloat16

TEST(BenchLayouts, CausalFiguresAreThoseByHand) {
  auto of = rows({"--mask", "causal", "--seq-len", "1024", "--ranks", "8", "--sequences", "2"});
  const double pairs = 1024 * 1025 / 2, last = pairs - 896 * 897 / 2;
  EXPECT_NEAR(of["contiguous"].area_worst, 8 * last / pairs, 5e-5);
  EXPECT_NEAR(of["contiguous"].area_mean, 8 * last / pairs, 5e-5);
  EXPECT_NEAR(of["zigzag"].area_worst, 1, 5e-5);
  EXPECT_NEAR(of["balanced"].area_worst, 1, 5e-5);
  EXPECT_EQ(of["contiguous"].chunk, "128");
  EXPECT_EQ(of["zigzag"].chunk, "64");
  EXPECT_EQ(of["striped"].chunk, "1");
  // Rank 0's block goes round all 7 hops; block r goes 7 - r hops, 3.5 on average.
  const double block = 128 * kKeyBytes / kMegabyte;
  EXPECT_NEAR(of["contiguous"].forward_mean, 3.5 * block, 0.05);
  EXPECT_NEAR(of["zigzag"].forward_most, 7 * block, 0.05);
  // Backward moves fp32 accumulators besides.
  EXPECT_NEAR(of["zigzag"].backward_most, 7 * block * 3, 0.05);
  // Contiguous rank r sees r blocks of others.
  EXPECT_NEAR(of["contiguous"].needed, 3.5 * block, 0.05);
  // Every striped rank sees all keys of others before its last row: 7 blocks but a few rows.
  EXPECT_NEAR(of["striped"].needed, 7 * block, 0.05);
  // 36 tiles of 128 x 128 hold anything.
  EXPECT_NEAR(of["contiguous"].tile_use, 100 * pairs / (36 * 128 * 128), 0.05);
  EXPECT_NEAR(of["contiguous"].tiles_worst, 8 * 8 / 36.0, 5e-4);
  EXPECT_NEAR(of["striped"].tile_use, 100 * pairs / (64 * 128 * 128), 0.05);
}

TEST(BenchLayouts, DocumentsThatFitTheRanksNeedNoBytes) {
  const test::TempDirectory folder;
  std::string lengths;
  for (int i = 0; i < 8; ++i) lengths += "256\n";
  auto of = rows({"--lengths", folder.write("lengths.txt", lengths), "--seq-len", "1024", "--ranks",
                  "4", "--sequences", "2"});
  for (const char* layout : {"contiguous", "balanced"}) {
    EXPECT_EQ(of[layout].area_worst, 1) << layout;
    EXPECT_EQ(of[layout].forward_most, 0) << layout;
    EXPECT_EQ(of[layout].backward_mean, 0) << layout;
    EXPECT_EQ(of[layout].needed, 0) << layout;
    EXPECT_EQ(of[layout].chunk, "256") << layout;
  }
  EXPECT_EQ(of["document_zigzag"].chunk, "32");
  EXPECT_GT(of["document_zigzag"].needed, 0);
}

TEST(BenchLayouts, TakesSchemesAsExpressions) {
  const test::ProcessResult result =
      bench({"--mask", "causal", "--seq-len", "256", "--sequences", "1", "--ranks", "8", "--scheme",
             "usp(around=double_ring(inner=2),heads=2)"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(
      result.out.find("8 ranks; usp(heads=2, around=double_ring(outer=2, inner=2)): 32 query"),
      std::string::npos)
      << result.out;
}

TEST(BenchLayouts, LayersAreCountedTogether) {
  // One full layer and two of a window of 129: contiguous ranks get their halo, 128 rows, in those.
  const std::vector<std::string> one{"--mask",  "causal", "--seq-len",   "1024",
                                     "--ranks", "8",      "--sequences", "1"};
  std::vector<std::string> three = one;
  three.insert(three.end(), {"--layer-types", "sliding_attention,full_attention,sliding_attention",
                             "--sliding-window", "129"});
  auto alone = rows(one), together = rows(three);
  const double halo = 128 * kKeyBytes / kMegabyte;
  EXPECT_NEAR(together["contiguous"].needed, alone["contiguous"].needed + 2 * 7.0 / 8 * halo, 0.1);
  // Of a rank's pairs: rank 0's windows are triangles, the others' full.
  const auto triangle = [](double n) { return n * (n + 1) / 2; };
  const double window = triangle(128) + 7 * 128 * 129;
  const double sum = triangle(1024) + 2 * window;
  const double last = triangle(1024) - triangle(896) + 2 * 128 * 129;
  EXPECT_NEAR(together["contiguous"].area_worst, 8 * last / sum, 5e-5);
  EXPECT_LE(together["balanced"].area_worst, parallel::kBalanceTarget);
}

TEST(BenchLayouts, SaysWhatIsWrong) {
  const test::TempDirectory folder;
  const std::string good = folder.write("good.txt", "100\n100\n");
  const auto expect = [&](const std::vector<std::string>& options, int code,
                          const std::string& text) {
    const test::ProcessResult result = bench(options);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  };
  expect({}, 64, "--lengths");
  expect({"--mask", "causal", "--lengths", good}, 64, "--lengths");
  expect({"--mask", "caus", "--lengths", good}, 78, "caus");
  expect({"--lengths", folder.file("none.txt")}, 74, "none.txt");
  expect({"--lengths", folder.write("bad.txt", "1\nx\n")}, 65, "bad.txt:2");
  expect({"--lengths", folder.write("less.txt", "1\n-4\n")}, 65, "-4 tokens");
  expect({"--lengths", good, "--seq-len", "64", "--sequences", "4"}, 65, "they fill 3");
  expect({"--lengths", good, "--seq-len", "64", "--sequences", "1", "--scheme", "rign"}, 78,
         "rign");
  expect({"--mask", "causal", "--scheme", "ring(outer=2)"}, 78, "character 6: ring takes no");
  expect({"--mask", "causal", "--scheme", "balanced_ring"}, 78, "contiguous");
  expect({"--mask", "causal", "--scheme", "ulysses", "--ranks", "7"}, 78, "7 ranks cannot share");
  expect({"--mask", "causal", "--heads", "6", "--kv-heads", "4"}, 64, "--kv-heads");
  expect({"--mask", "causal", "--ranks", "0"}, 64, "--ranks");
  expect({"--mask", "causal", "--layer-types", "sliding"}, 64, "sliding");
  expect({"--mask", "causal", "--layer-types", "sliding_attention"}, 64, "--sliding-window");
  expect({"--mask", "causal", "--sliding-window", "8"}, 64, "--layer-types");
}

/// Lines of a table without the four columns of times.
std::string without_times(const std::string& table) {
  std::istringstream lines(table);
  std::string text;
  for (std::string line; std::getline(lines, line);) {
    const bool of_a_layout = line.find('%') != std::string::npos;
    for (int column = 0; of_a_layout && column < 4; ++column)
      line.resize(line.find_last_not_of(' ', line.find_last_of(' ')) + 1);
    text += line + "\n";
  }
  return text;
}

TEST(BenchLayouts, TheTablesOfTheReadmesAreWhatItPrints) {
  struct Table {
    const char *readme, *lengths, *seq_len, *ranks;
  };
  for (const auto& [readme, lengths, seq_len, ranks] :
       {Table{"parallel/README.md", "document_lengths_wlb.txt", "524288", "32"},
        Table{"parallel/README.md", "document_lengths_prolong.txt", "524288", "32"},
        Table{"launch/README.md", "document_lengths_wlb.txt", "131072", "8"}}) {
    const auto data = test::reference_data(lengths);
    if (!data) GTEST_SKIP() << test::no_reference_data(lengths);
    const test::ProcessResult result =
        bench({"--lengths", data->string(), "--seq-len", seq_len, "--ranks", ranks});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string documented = test::read_text(std::string(LONGHAUL_SOURCE_DIR) + "/" + readme);
    EXPECT_NE(without_times(documented).find(without_times(result.out)), std::string::npos)
        << readme << " differs from\n"
        << result.out;
  }
}

}  // namespace
}  // namespace longhaul::launch

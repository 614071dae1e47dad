// `longhaul bench step` under mpirun: all ranks time one job, and one of them tells.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

using Json = nlohmann::json;

TEST(BenchJob, RanksOfMpirunTimeTheStepsOfThoseInOneProcess) {
  const TrainingJob job;
  const auto bench = [&](int ranks) {
    const std::string json = job.folder().file("bench" + std::to_string(ranks) + ".json");
    const std::vector<std::string> arguments = {
        "bench",
        "step",
        job.config(),
        "--steps",
        "3",
        "--warm-up",
        "1",
        "--json",
        json,
        "--set",
        "model.vocab_size=61",
        "--set",
        "data.corpus=" + job.folder().file("none.h5"),
        "--set",
        "job.output_dir=" + job.output("none"),
        "--set",
        "parallelism.context_parallel_degree=2",
        "--set",
        "parallelism.data_parallel_replicate_degree=1",
        "--set",
        ranks == 0 ? "comm.backend=loopback" : "comm.backend=mpi"};
    const ProcessResult result =
        ranks == 0 ? run_longhaul(arguments) : run_process(mpirun_command(ranks, arguments));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto first = result.out.find("\nstep ");
    EXPECT_NE(first, std::string::npos) << result.out;
    EXPECT_EQ(result.out.find("\nstep ", first + 1), std::string::npos) << result.out;
    return Json::parse(read_text(json));
  };
  const Json together = bench(0), apart = bench(2);
  EXPECT_EQ(apart["config"]["comm"]["backend"], "mpi");
  for (const char* same : {"tokens", "flops", "loss", "parameters", "memory_bytes"})
    EXPECT_EQ(apart[same], together[same]) << same;
  EXPECT_EQ(apart["seconds"]["repetitions"], 3);
  EXPECT_FALSE(std::filesystem::exists(job.output("none")));
}

TEST(BenchJob, PeakMeasuresMessagesBetweenTwoProcesses) {
  const TrainingJob job;
  const std::string json = job.folder().file("peak.json");
  const std::vector<std::string> arguments{"bench",     "peak", "--what", "exchange",
                                           "--seconds", "0.01", "--json", json};
  const ProcessResult result = run_process(mpirun_command(2, arguments));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const Json written = Json::parse(read_text(json));
  std::map<std::string, int> rows;
  for (const Json& row : written["exchanges"]) {
    ++rows[row["backend"]];
    EXPECT_GT(row["bytes_per_second"].get<double>(), 1e6) << row;
    EXPECT_LT(row["bytes_per_second"].get<double>(), 1e12) << row;
  }
  EXPECT_EQ(rows, (std::map<std::string, int>{{"loopback", 6}, {"mpi", 6}}));
  EXPECT_NE(result.out.find("mpi, 64.0 MiB, both ways"), std::string::npos) << result.out;
  EXPECT_EQ(result.out.find("CPU level"), result.out.rfind("CPU level")) << result.out;

  const ProcessResult three =
      run_process(mpirun_command(3, {"bench", "peak", "--what", "exchange"}));
  EXPECT_EQ(three.exit_code, 69);
  EXPECT_NE(three.err.find("bench peak on 3 ranks; expected 2"), std::string::npos) << three.err;
}

}  // namespace
}  // namespace longhaul::test

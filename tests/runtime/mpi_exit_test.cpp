// How a job under mpirun ends when a rank stops, dies or throws.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <regex>
#include <sstream>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

struct Ending {
  int code = -1;
  double seconds = 0;
  std::string output;
  std::vector<int> processes;
};

Ending run_job(const std::string& mode) {
  const std::string folder = testing::TempDir() + "mpi_exit_" + mode;
  std::filesystem::remove_all(folder);
  const std::string command =
      concat("ASAN_OPTIONS=detect_leaks=0 ",  // Open MPI leaks what it allocates at start
             LONGHAUL_MPIEXEC, " --allow-run-as-root --oversubscribe --bind-to none -np 3 ",
             LONGHAUL_BINARY_DIR, "/tests/mpi_exit_program ", mode, " ", folder, " 2>&1");
  Ending ending;
  const auto begin = std::chrono::steady_clock::now();
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ending;
  char buffer[4096];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) ending.output += buffer;
  const int status = pclose(pipe);
  ending.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  ending.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::istringstream lines(ending.output);
  for (std::string line; std::getline(lines, line);) {
    int process = 0;
    if (std::sscanf(line.c_str(), "pid %d", &process) == 1) ending.processes.push_back(process);
  }
  return ending;
}

void expect_no_process_left(const Ending& ending) {
  EXPECT_EQ(ending.processes.size(), 3u) << ending.output;
  for (const int process : ending.processes) {
    bool gone = false;
    for (int i = 0; i < 50 && !gone; ++i) {
      gone = kill(process, 0) != 0;
      if (!gone) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(gone) << "process " << process << " is left";
  }
}

TEST(MpiExit, Done) {
  const Ending ending = run_job("none");
  EXPECT_EQ(ending.code, 0) << ending.output;
  expect_no_process_left(ending);
}

TEST(MpiExit, AStoppedRankIsAHangThatNamesItsStep) {
  const Ending ending = run_job("stop");
  EXPECT_EQ(ending.code, 76) << ending.output;
  // The timeout is 2 s; mpirun itself takes up to 2 s to clean up, and starting takes a while.
  EXPECT_LT(ending.seconds, 10) << ending.output;
  // Whoever reports after mpirun has continued the rank says "was stopped".
  EXPECT_TRUE(std::regex_search(ending.output,
                                std::regex("rank 1 \\(\\S+, pid \\d+\\) (was )?stopped.*; step 3")))
      << ending.output;
  expect_no_process_left(ending);
}

TEST(MpiExit, AKilledRankEndsTheJob) {
  const Ending ending = run_job("kill");
  EXPECT_NE(ending.code, 0) << ending.output;
  EXPECT_LT(ending.seconds, 10) << ending.output;
  expect_no_process_left(ending);
}

TEST(MpiExit, AnErrorOnOneRankEndsTheJobWithItsCode) {
  const Ending ending = run_job("throw");
  EXPECT_EQ(ending.code, 65) << ending.output;
  EXPECT_LT(ending.seconds, 10) << ending.output;
  expect_no_process_left(ending);
}

}  // namespace
}  // namespace longhaul::runtime

#include "runtime/flight.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

std::string fresh_folder() {
  const std::string folder = testing::TempDir() + "flight_" +
                             testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove_all(folder);
  return folder;
}

/// Leaves the rank's file as it is now, as a rank killed at this moment would.
class Killed {
 public:
  Killed(const std::string& folder, int rank) : file_(flight_file(folder, rank)) {
    std::filesystem::copy_file(file_, file_ + ".copy");
  }
  void restore() const { std::filesystem::rename(file_ + ".copy", file_); }

 private:
  std::string file_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string line_of(const std::string& report, const std::string& start) {
  const auto at = report.find(start);
  return at == std::string::npos ? "" : report.substr(at, report.find('\n', at) - at);
}

TEST(FlightRecorder, ReportTellsStoppedFromWaiting) {
  const std::string folder = fresh_folder();
  std::optional<Killed> killed;
  {
    FlightRecorder stopped(folder, 1);
    stopped.set_step(41);
    stopped.set_step(42);
    stopped.set_phase("forward");
    stopped.end(stopped.begin({"norm", "none", -1, 6}));
    stopped.begin({"ring hop 2", "context", 2, 7});
    killed.emplace(folder, 1);
  }
  killed->restore();
  FlightRecorder waiting(folder, 0), computing(folder, 3);
  waiting.set_step(42);
  waiting.begin({"ring hop 3", "context", 1, 8});
  computing.set_step(42);
  computing.end(computing.begin({"ring hop 1", "context", 0, 6}));
  { FlightRecorder ended(folder, 2); }
  std::this_thread::sleep_for(std::chrono::milliseconds(1700));
  const std::string report = hang_report(folder, 5);
  const std::string line = line_of(report, "rank 1 ");
  EXPECT_TRUE(contains(line, "stopped: last heartbeat 1.")) << report;
  EXPECT_TRUE(contains(
      line,
      "step 42, forward, in 'ring hop 2' (operation 7 of communicator 'context', with rank 2"))
      << report;
  EXPECT_TRUE(contains(line_of(report, "rank 0 "), "waits: step 42, in 'ring hop 3' (operation 8"))
      << report;
  EXPECT_TRUE(contains(line_of(report, "rank 3 "), "runs outside communication: step 42"))
      << report;
  EXPECT_TRUE(contains(line_of(report, "rank 3 "), "its last was 'ring hop 1'")) << report;
  EXPECT_TRUE(contains(line_of(report, "rank 2 "), "has ended in good order")) << report;
  EXPECT_TRUE(contains(line_of(report, "rank 4 "), "unknown")) << report;
  EXPECT_EQ(report.find("rank 1 "), 0u) << "who stopped comes first:\n" << report;
}

TEST(FlightRecorder, DamagedRecordsAreToleratedAndNamed) {
  const std::string folder = fresh_folder();
  std::filesystem::create_directories(folder);
  { std::ofstream(flight_file(folder, 0)) << "short"; }
  { std::ofstream(flight_file(folder, 1)) << std::string(100'000, 'x'); }
  std::filesystem::create_directories(flight_file(folder, 2));
  { FlightRecorder other(folder, 4); }
  std::filesystem::copy_file(flight_file(folder, 4), flight_file(folder, 3));
  const std::string report = hang_report(folder, 4);
  EXPECT_TRUE(contains(report, "has only 5 of")) << report;
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_TRUE(contains(report, concat("rank ", rank, " is unknown"))) << report;
  }
}

TEST(FlightRecorder, AnyByteMayBeWrong) {
  const std::string folder = fresh_folder();
  std::vector<char> good;
  {
    FlightRecorder recorder(folder, 0);
    recorder.set_phase("backward");
    for (int i = 0; i < 20; ++i) recorder.begin({"operation", "comm", i, i});
    std::ifstream file(flight_file(folder, 0), std::ios::binary);
    good.assign(std::istreambuf_iterator<char>(file), {});
  }
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<char> bad = good;
    for (int i = 0; i < 64; ++i) bad[8 + random() % (bad.size() - 8)] = static_cast<char>(random());
    std::ofstream(flight_file(folder, 0), std::ios::binary)
        .write(bad.data(), static_cast<std::streamsize>(bad.size()));
    const std::string report = hang_report(folder, 1);
    EXPECT_TRUE(contains(report, "rank 0"));
    for (const char letter : report)
      EXPECT_TRUE(letter == '\n' || (letter >= ' ' && letter <= '~'));
  }
}

TEST(FlightRecorder, ManyOperationsAtOnce) {
  const std::string folder = fresh_folder();
  FlightRecorder recorder(folder, 0);
  std::set<int> slots;
  for (int i = 0; i < 16; ++i) slots.insert(recorder.begin({"open", "c", -1, i}));
  EXPECT_EQ(slots.size(), 16u);
  EXPECT_FALSE(slots.contains(-1));
  EXPECT_EQ(recorder.begin({"one too many", "c", -1, 16}), -1);
  recorder.end(-1);
  recorder.end(*slots.begin());
  EXPECT_EQ(recorder.begin({"fits again", "c", -1, 17}), *slots.begin());
  EXPECT_TRUE(contains(hang_report(folder, 1), "fits again"));
}

TEST(FlightRecorder, ThreadsRecordTogetherAndCheaply) {
  const std::string folder = fresh_folder();
  FlightRecorder recorder(folder, 0);
  constexpr int kRounds = 20'000;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&recorder, t] {
      for (int i = 0; i < kRounds; ++i) {
        const FlightScope scope(&recorder, {"operation", "comm", t, i});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double each =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() /
      (4 * kRounds);
  EXPECT_LT(each, 20e-6);
  EXPECT_TRUE(contains(hang_report(folder, 1), "in no operation; its last was 'operation'"))
      << hang_report(folder, 1);
  const FlightScope nothing(nullptr, {"no recorder", "comm"});
}

TEST(FlightRecorder, AnOperationThatThrowsStaysOpen) {
  const std::string folder = fresh_folder();
  FlightRecorder recorder(folder, 0);
  try {
    const FlightScope outer(&recorder, {"hop", "comm", 1, 5});
    fail(ExitCode::hang, "no answer");
  } catch (const Error&) {
    const FlightScope later(&recorder, {"later", "comm"});
  }
  const std::string report = hang_report(folder, 1);
  EXPECT_TRUE(contains(report, "waits: step none, in 'hop'")) << report;
  EXPECT_FALSE(contains(report, "later")) << report;
}

TEST(FlightRecorder, LongNamesAreCut) {
  const std::string folder = fresh_folder();
  FlightRecorder recorder(folder, 0);
  recorder.set_phase(std::string(500, 'p'));
  recorder.begin({std::string(500, 'n'), std::string(500, 'c'), -1, 0});
  const std::string report = hang_report(folder, 1);
  EXPECT_TRUE(contains(report, "'" + std::string(63, 'n') + "'")) << report;
  EXPECT_TRUE(contains(report, "'" + std::string(31, 'c') + "'")) << report;
}

TEST(FlightRecorder, AFolderThatCannotBeIsAnIoError) {
  try {
    FlightRecorder recorder("/proc/no/such/folder", 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::io) << error.what();
  }
}

}  // namespace
}  // namespace longhaul::runtime

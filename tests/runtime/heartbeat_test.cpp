// One run a folder: who is refused, who takes over, and that nothing is written before it is known.
#include "runtime/heartbeat.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::read_text;
using test::TempDirectory;
using test::write_text;

constexpr double kPeriod = 0.15;  // still for 0.9 s: dead

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
void sleep_periods(double periods) {
  std::this_thread::sleep_for(std::chrono::duration<double>(periods * kPeriod));
}

struct Told {
  std::vector<std::string> lines = {};
  double period_seconds = kPeriod;
  HeartbeatOptions options() {
    return {.folder_name = "job.output_dir",
            .period_seconds = period_seconds,
            .say = [this](const std::string& line) { lines.push_back(line); }};
  }
  bool has(const std::string& part) const {
    return std::ranges::any_of(
        lines, [&](const std::string& line) { return line.find(part) != std::string::npos; });
  }
};

fs::path file_in(const TempDirectory& folder) { return folder / Heartbeat::kFileName; }

/// Every file below a folder with its contents and time.
std::map<std::string, std::string> everything_in(const fs::path& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().filename() == Heartbeat::kFileName) continue;
    found[entry.path()] = std::to_string(entry.last_write_time().time_since_epoch().count());
    if (entry.is_regular_file()) found[entry.path()] += read_text(entry.path());
  }
  return found;
}

/// A heartbeat of a run on a host that is not this one, written by hand.
nlohmann::ordered_json pretended(std::int64_t counter) {
  return {{"host", "elsewhere"}, {"pid", 4242},          {"started", "2026-01-02 03:04:05 UTC"},
          {"counter", counter},  {"run", "elsewhere-1"}, {"process_start", 17},
          {"process_space", ""}};
}

/// What a process of this host leaves that took a folder and died.
void leave_a_dead_heartbeat(const fs::path& folder) {
  const pid_t child = fork();
  if (child == 0) {
    const auto left = new Heartbeat(folder, {.period_seconds = 5});
    static_cast<void>(left);
    _exit(0);
  }
  siginfo_t info = {};  // it stays a zombie: dead all the same
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
}

TEST(Heartbeat, AFolderIsOneRunsUntilItEnds) {
  const TempDirectory folder;
  folder.write("checkpoints/step-00000004.tmp-x/part", "half written");
  {
    Told told;
    Heartbeat first(folder.path(), told.options());
    EXPECT_TRUE(told.lines.empty());
    const auto record = nlohmann::json::parse(read_text(file_in(folder)));
    const auto before = everything_in(folder.path());
    Told second;
    for (const std::string& part :
         {"job.output_dir = " + folder.path().string(), "pid " + std::to_string(getpid()),
          "host " + record["host"].get<std::string>(),
          "started " + record["started"].get<std::string>()}) {
      expect_error(ExitCode::launch, part, [&] { Heartbeat(folder.path(), second.options()); });
    }
    EXPECT_TRUE(second.has("waits ")) << "why it waits";
    EXPECT_EQ(everything_in(folder.path()), before);
    first.check();
    EXPECT_GT(nlohmann::json::parse(read_text(file_in(folder)))["counter"], 1);
  }
  EXPECT_FALSE(fs::exists(file_in(folder)));
  Told next;
  next.period_seconds = 100;
  const Heartbeat at_once(folder.path(), next.options());
  EXPECT_TRUE(next.lines.empty());
}

TEST(Heartbeat, AnotherHostsRunThatGoesOnIsNamed) {
  const TempDirectory folder;
  write_text(file_in(folder), pretended(1).dump());
  std::jthread elsewhere([&](const std::stop_token& stop) {
    for (std::int64_t counter = 2; !stop.stop_requested(); ++counter) {
      sleep_periods(1);
      write_text(file_in(folder), pretended(counter).dump());
    }
  });
  Told told;
  expect_error(ExitCode::launch, "host elsewhere, pid 4242, started 2026-01-02 03:04:05 UTC",
               [&] { Heartbeat(folder.path(), told.options()); });
  elsewhere.request_stop();
}

TEST(Heartbeat, AnotherHostsRunThatStandsStillIsTakenOverAndItIsSaid) {
  std::vector<std::jthread> cases;
  for (const std::string& left :
       {pretended(1).dump(), std::string("{\"host\": \"torn"), std::string()}) {
    cases.emplace_back([left] {
      SCOPED_TRACE(left);
      const TempDirectory folder;
      write_text(file_in(folder), left);
      Told told;
      const auto begin = std::chrono::steady_clock::now();
      Heartbeat heartbeat(folder.path(), told.options());
      EXPECT_GE(seconds_since(begin), 6 * kPeriod);
      EXPECT_TRUE(told.has("has not moved for 0.9 s"));
      EXPECT_TRUE(told.has(left.size() > 20 ? "host elsewhere, pid 4242" : "is not readable"));
      heartbeat.check();
    });
  }
}

TEST(Heartbeat, ARunThatEndsWhileAnotherWaitsMakesRoom) {
  const TempDirectory folder;
  write_text(file_in(folder), pretended(1).dump());
  std::jthread elsewhere([&] {
    sleep_periods(1.5);
    fs::remove(file_in(folder));
  });
  Told told;
  const auto begin = std::chrono::steady_clock::now();
  const Heartbeat heartbeat(folder.path(), told.options());
  EXPECT_LT(seconds_since(begin), 6 * kPeriod);
  EXPECT_FALSE(told.has("took"));
}

TEST(Heartbeat, OfAProcessOfThisHostThatIsGoneIsTakenOverAtOnce) {
  const TempDirectory folder;
  leave_a_dead_heartbeat(folder.path());
  Told told;
  told.period_seconds = 2;  // waiting would take 12 s
  const auto begin = std::chrono::steady_clock::now();
  { const Heartbeat heartbeat(folder.path(), told.options()); }
  EXPECT_LT(seconds_since(begin), 10);
  EXPECT_TRUE(told.has("that process is no more"));
  EXPECT_FALSE(told.has("waits"));

  // A process number that has been given to another process since: this one's.
  leave_a_dead_heartbeat(folder.path());
  auto record = nlohmann::ordered_json::parse(read_text(file_in(folder)));
  record["pid"] = getpid();
  record["process_start"] = record["process_start"].get<std::int64_t>() - 1;
  write_text(file_in(folder), record.dump());
  Told again;
  again.period_seconds = 2;
  { const Heartbeat heartbeat(folder.path(), again.options()); }
  EXPECT_TRUE(again.has("that process is no more"));
  EXPECT_FALSE(again.has("waits"));

  // Process numbers of another container on a host of the same name say nothing here.
  leave_a_dead_heartbeat(folder.path());
  record = nlohmann::ordered_json::parse(read_text(file_in(folder)));
  record["process_space"] = record["process_space"].get<std::string>() + "0";
  write_text(file_in(folder), record.dump());
  Told other;
  const Heartbeat heartbeat(folder.path(), other.options());
  EXPECT_TRUE(other.has("has not moved for"));
}

/// A run is suspended, and wakes up when another one has its folder, or has had it.
void expect_notices(bool ended) {
  SCOPED_TRACE(ended ? "the other run has ended" : "the other run goes on");
  const TempDirectory folder;
  const pid_t child = fork();
  if (child == 0) {
    try {
      Heartbeat heartbeat(folder.path(), {.period_seconds = kPeriod});
      for (int i = 0; i < 1000; ++i) {
        heartbeat.check();
        if (i > 0) fs::last_write_time(folder.path(), fs::file_time_type::clock::now());
        sleep_periods(0.1);
      }
      _exit(1);
    } catch (const Error& error) {
      const std::string other =
          ended ? "one that has ended since" : "pid " + std::to_string(getppid());
      const bool named = std::string(error.what()).find(other) != std::string::npos;
      _exit(named ? static_cast<int>(error.code()) : 2);
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  while (!fs::exists(file_in(folder)) && seconds_since(begin) < 20) sleep_periods(0.1);
  sleep_periods(1);
  ASSERT_EQ(kill(child, SIGSTOP), 0);
  Told told;
  std::optional<Heartbeat> heartbeat(std::in_place, folder.path(), told.options());
  EXPECT_TRUE(told.has("pid " + std::to_string(child)));
  if (ended) heartbeat.reset();
  ASSERT_EQ(kill(child, SIGCONT), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::launch));
  // The one that woke up has left the folder alone.
  EXPECT_EQ(fs::exists(file_in(folder)), !ended);
  if (ended) return;
  heartbeat->check();
  EXPECT_EQ(nlohmann::json::parse(read_text(file_in(folder)))["pid"], getpid());
}

TEST(Heartbeat, ARunThatWasSuspendedAndTakenOverNotices) {
  expect_notices(false);
  expect_notices(true);
}

TEST(Heartbeat, OfSeveralRunsThatStartAtTheSameMomentOneStarts) {
  for (const bool after_a_dead_run : {false, true}) {
    SCOPED_TRACE(after_a_dead_run);
    const TempDirectory folder;
    if (after_a_dead_run) leave_a_dead_heartbeat(folder.path());
    std::atomic<int> started = 0, refused = 0;
    {
      std::vector<std::jthread> runs;
      for (int run = 0; run < 7; ++run) {
        runs.emplace_back([&] {
          try {
            const Heartbeat heartbeat(folder.path(), {.period_seconds = kPeriod});
            ++started;
            while (started + refused < 7) sleep_periods(0.1);
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::launch) << error.what();
            ++refused;
          }
        });
      }
    }
    EXPECT_EQ(started, 1);
    EXPECT_EQ(refused, 6);
  }
}

TEST(Heartbeat, ComesBackWhenItsFileWasRemovedByHand) {
  const TempDirectory folder;
  Told told;
  Heartbeat heartbeat(folder.path(), told.options());
  fs::remove(file_in(folder));
  const auto begin = std::chrono::steady_clock::now();
  const auto written = [&] {
    std::error_code none;
    const auto bytes = fs::file_size(file_in(folder), none);
    return !none && bytes > 0;  // it is there a moment before it holds anything
  };
  while (!written() && seconds_since(begin) < 20) sleep_periods(0.2);
  heartbeat.check();
  EXPECT_EQ(nlohmann::json::parse(read_text(file_in(folder)))["pid"], getpid());
}

TEST(Heartbeat, AWaitEndsWhenTheProcessIsAskedToStop) {
  const TempDirectory folder;
  write_text(file_in(folder), pretended(1).dump());
  Told told;
  HeartbeatOptions options = told.options();
  options.period_seconds = 10;
  options.give_up = [] { return true; };
  expect_error(ExitCode::launch, "host elsewhere", [&] { Heartbeat(folder.path(), options); });
  EXPECT_EQ(read_text(file_in(folder)), pretended(1).dump());
}

TEST(Heartbeat, ALinkToNothingInItsPlaceIsTakenOverLikeAnyFile) {
  const TempDirectory folder;
  fs::create_symlink("/nowhere/at/all", file_in(folder));
  Told told;
  HeartbeatOptions options = told.options();
  const auto begin = std::chrono::steady_clock::now();
  options.give_up = [&] { return seconds_since(begin) > 0.4; };
  expect_error(ExitCode::launch, "is not readable", [&] { Heartbeat(folder.path(), options); });
  EXPECT_TRUE(fs::is_symlink(file_in(folder)));
  options.give_up = [&] { return seconds_since(begin) > 20; };
  Heartbeat heartbeat(folder.path(), options);
  EXPECT_TRUE(told.has("has not moved for 0.9 s"));
  EXPECT_FALSE(fs::is_symlink(file_in(folder)));
  heartbeat.check();
}

TEST(Heartbeat, OneThatWasSeenBeforeHasStoodStillSinceThen) {
  const TempDirectory folder;
  write_text(file_in(folder), pretended(1).dump());
  const auto seen = Heartbeat::look(folder.path());
  ASSERT_TRUE(seen);
  sleep_periods(6.5);
  Told told;
  HeartbeatOptions options = told.options();
  options.seen = seen;
  const auto begin = std::chrono::steady_clock::now();
  { const Heartbeat heartbeat(folder.path(), options); }
  EXPECT_LT(seconds_since(begin), 4 * kPeriod);
  EXPECT_TRUE(told.has("took") && !told.has("waits"));
  EXPECT_FALSE(Heartbeat::look(folder.path()));
  // One that has moved since is looked at anew.
  write_text(file_in(folder), pretended(2).dump());
  Told again;
  options = again.options();
  options.seen = seen;
  const Heartbeat heartbeat(folder.path(), options);
  EXPECT_TRUE(again.has("waits"));
}

TEST(Heartbeat, AFolderThatCannotBeWrittenIsAnIoError) {
  const TempDirectory folder;
  fs::create_symlink("/nowhere/at/all", folder / "link");
  expect_error(ExitCode::io, "it is a link to /nowhere/at/all, which does not exist",
               [&] { Heartbeat(folder / "link", {.folder_name = "checkpoint.folder"}); });
  expect_error(ExitCode::io, "/proc/no/such",
               [] { Heartbeat("/proc/no/such", {.folder_name = "job.output_dir"}); });
}

}  // namespace
}  // namespace longhaul::runtime

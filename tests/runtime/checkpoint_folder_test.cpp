// A folder of checkpoints: what goes, what is set aside, and what kills, full disks and other runs
// leave of it.
#include "runtime/io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "runtime/comm/loopback.h"
#include "runtime/io/file.h"
#include "runtime/io/hash.h"
#include "tests/support/expect_error.h"
#include "tests/support/saved_checkpoints.h"
#include "tests/support/temp_directory.h"

namespace longhaul::runtime {
namespace {

using namespace test;
namespace fs = std::filesystem;

TEST(Checkpoint, PrunesOldestFirstAndNeverTheNewOne) {
  TempDirectory folder;
  for (const std::int64_t step : {10, 20, 30, 40}) save(folder.path(), step, 2, 0, 3);
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{20, 30, 40}));
  save(folder.path(), 25, 2, 0, 1);  // after resuming from an older one
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{25, 30, 40}));
  fs::create_directory(folder / "step-00000050.tmp-dead");  // of a save that died
  fs::create_directory(folder / "step-notes");
  fs::create_directory(folder / "step-5");
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{25, 30, 40}));
  save(folder.path(), 50, 2, 0, 1);
  EXPECT_EQ(names_in(folder.path()),
            (std::set<std::string>{"step-00000050", "step-notes", "step-5"}));
}

TEST(Checkpoint, LaterOnesAreSetAsideInTheFolderItself) {
  TempDirectory folder;
  // Another disk, where this machine has one.
  const bool memory = fs::is_directory("/dev/shm");
  const fs::path disk =
      memory ? fs::path(concat("/dev/shm/longhaul-", unique_suffix())) : folder / "disk";
  const Cleanup remove([&] { fs::remove_all(disk); });
  fs::create_directory(disk);
  fs::create_directory(folder / "near");
  fs::create_directory_symlink(disk, folder / "link");
  for (const fs::path& named : {folder / "near/", folder / "link", folder / "near/../near/."}) {
    SCOPED_TRACE(named);
    const std::set<std::string> beside = names_in(folder.path());
    for (const std::int64_t step : {1, 2, 3}) save(named, step, 1);
    test::write_text(named / "heartbeat.json", "{}");
    const fs::path first = set_aside_newer_checkpoints(named, 1);
    EXPECT_EQ(list_checkpoints(first), (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(list_checkpoints(named), std::vector<std::int64_t>{1});
    EXPECT_EQ(names_in(named),
              (std::set<std::string>{"step-00000001", "heartbeat.json", first.filename()}));
    EXPECT_EQ(names_in(folder.path()), beside);
    EXPECT_EQ(set_aside_newer_checkpoints(named, 1), "");
    const fs::path second = set_aside_newer_checkpoints(named, 0);
    EXPECT_TRUE(fs::equivalent(second.parent_path(), named));
    EXPECT_NE(second, first);
    expect_reads(Checkpoint::open(second, 1), 1, 0, 1);
    save(named, 4, 1, 0, 1);  // and what a run removes there is not what was set aside
    EXPECT_EQ(list_checkpoints(first), (std::vector<std::int64_t>{2, 3}));
    for (const auto& entry : fs::directory_iterator(named)) fs::remove_all(entry.path());
  }
}

/// A save by three ranks whose caller loses the folder at the n-th time that it is asked.
void expect_lost(const fs::path& folder, std::int64_t step, int lost_at) {
  std::atomic<int> asked = 0, refused = 0;
  run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices = slices_of(kTensors, comm->rank(), 3, 0, step, memory);
    SaveOptions options{folder, 1};
    options.before_change = [&] {
      EXPECT_EQ(comm->rank(), 0);
      if (++asked >= lost_at) fail(ExitCode::launch, "another run has it");
    };
    expect_error(ExitCode::launch, "another run has it",
                 [&] { save_checkpoint(options, metadata_of(step), slices, *comm, stream); });
    ++refused;
  });
  EXPECT_EQ(refused, 3);
  EXPECT_EQ(asked, lost_at) << "it went on after it had been told";
}

TEST(Checkpoint, AFolderThatIsLostInTheMiddleOfASaveIsLeftAlone) {
  TempDirectory folder;
  save(folder.path(), 1, 2);
  save(folder.path(), 4, 2, 0, 0, 100);
  fs::create_directory(folder / "step-00000009.tmp-of-the-other-run");
  const std::set<std::string> before = names_in(folder.path());
  for (const std::int64_t step : {4, 5}) {
    for (const int lost_at : {1, 2}) {  // before it begins, and before its own appears
      SCOPED_TRACE(lost_at);
      if (lost_at > 1) fs::remove(folder / "step-00000009.tmp-of-the-other-run");
      expect_lost(folder.path(), step, lost_at);
      fs::create_directory(folder / "step-00000009.tmp-of-the-other-run");
      EXPECT_EQ(names_in(folder.path()), before);
      expect_reads(Checkpoint::open(folder.path(), 4), 1, 0, 100);
    }
  }
  fs::remove(folder / "step-00000009.tmp-of-the-other-run");
  expect_lost(folder.path(), 5, 3);  // before older ones go
  EXPECT_EQ(list_checkpoints(folder.path()), (std::vector<std::int64_t>{1, 4, 5}));
}

TEST(Checkpoint, AFailedSaveAsksFirstWhoseTheFolderIsAndNamesWhatIsThere) {
  for (const bool lost : {true, false}) {
    TempDirectory folder;
    save(folder.path(), 9, 1);  // of a step that is still to come: another run's
    int asked = 0;
    run_loopback(1, {}, [&](std::unique_ptr<Communicator> comm) {
      const Stream stream = Stream::cpu("io");
      std::vector<std::vector<std::byte>> memory;
      const auto slices = slices_of(kTensors, 0, 1, 0, 6, memory);
      SaveOptions options{folder.path()};
      options.before_change = [&] {
        // As a new owner's save does to what it takes for an attempt that died.
        if (++asked == 2) {
          for (const std::string& name : names_in(folder.path())) {
            if (name.starts_with("step-00000006.tmp")) fs::remove_all(folder / name);
          }
        } else if (asked == 3 && lost) {
          fail(ExitCode::launch, "another run has it");
        }
      };
      expect_error(lost ? ExitCode::launch : ExitCode::io,
                   lost ? "another run has it" : "the checkpoint of step 9 is complete and safe",
                   [&] { save_checkpoint(options, metadata_of(6), slices, *comm, stream); });
    });
    EXPECT_EQ(asked, 3);
    EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000009"});
  }
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  TempDirectory folder;
  save(folder.path(), 10, 3, 0, 2, 100);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 100);
  save(folder.path(), 10, 2, 0, 2, 101);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 101);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000010"});
  // Where folders cannot be exchanged, a crash can leave the older version under another name.
  fs::rename(folder / "step-00000010", folder / "step-00000010.replaced-1");
  EXPECT_EQ(list_checkpoints(folder.path()), std::vector<std::int64_t>{10});
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 101);
  save(folder.path(), 10, 1, 0, 2, 102);
  expect_reads(Checkpoint::open(folder.path(), 10), 1, 0, 102);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000010"});
}

TEST(Checkpoint, RefusesUnusableTensorsBeforeAnythingIsCommitted) {
  TempDirectory folder;
  save(folder.path(), 1, 1);
  const Spec odd{"a/b", DType::float32, {4}};
  expect_error(ExitCode::internal, "a/b", [&] { save(folder.path(), 2, 3, 0, 0, -1, {odd}); });
  const Spec twice{"w", DType::float32, {4}};
  expect_error(ExitCode::internal, "overlap", [&] {
    save(folder.path(), 2, 1, 0, 0, -1, {twice, twice});
  });
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000001"});
}

/// Runs `body` in a child process, which ends with its result.
template <class Body>
pid_t start_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 99;
    try {
      result = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    std::fflush(nullptr);
    ::_exit(result);
  }
  return child;
}

const std::vector<Spec> kLarger{{"a", DType::float32, {301, 307}},
                                {"b", DType::float64, {40007}},
                                {"c", DType::bfloat16, {64, 64, 9}}};

TEST(Checkpoint, AKilledSaveAlwaysLeavesAWholeCheckpoint) {
  TempDirectory folder;
  save(folder.path(), 0, 2, 0, 2, -1, kLarger);
  std::mt19937 random(3);
  std::set<std::int64_t> newest_steps;
  std::int64_t first = 1;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = start_child([&]() -> int {
      for (std::int64_t step = first;; ++step) save(folder.path(), step, 2, 0, 2, -1, kLarger);
    });
    ASSERT_GT(child, 0);
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + random() % 250000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    const std::vector<std::int64_t> steps = list_checkpoints(folder.path());
    ASSERT_FALSE(steps.empty());
    for (const std::int64_t step : steps) {  // each is whole, and of one version
      const Checkpoint checkpoint = Checkpoint::open(folder.path(), step);
      EXPECT_EQ(checkpoint.metadata(), metadata_of(step));
      expect_reads(checkpoint, 1, 0, step, kLarger);
    }
    EXPECT_GE(steps.back() + 1, first) << "a committed checkpoint was lost";
    first = steps.back() + 1;
    newest_steps.insert(steps.back());
  }
  EXPECT_GT(newest_steps.size(), 2u) << "the children hardly ever saved anything";
  // The last attempt's remains go with the next save.
  save(folder.path(), first, 1, 0, 1, -1, kLarger);
  EXPECT_EQ(names_in(folder.path()).size(), 1u);
}

TEST(Checkpoint, AKilledReplacementKeepsOneOfTheTwo) {
  TempDirectory folder;
  save(folder.path(), 5, 2, 0, 2, 0, kLarger);
  std::mt19937 random(4);
  for (int round = 0; round < 8; ++round) {
    const pid_t child = start_child([&]() -> int {
      for (std::int64_t version = 1;; version = 1 - version) {
        save(folder.path(), 5, 2, 0, 2, version, kLarger);
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + random() % 200000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    const Checkpoint checkpoint = Checkpoint::open(folder.path(), 5);
    std::vector<std::byte> a(4 * 301 * 307);
    checkpoint.read("a", std::vector<std::int64_t>{0, 0},
                    TensorView(a.data(), DType::float32, Device{}, {301, 307}));
    const std::int64_t version = a == global_bytes(kLarger[0], 0) ? 0 : 1;
    expect_reads(checkpoint, 1, 0, version, kLarger);
  }
}

TEST(Checkpoint, AFullDiskAbandonsTheAttempt) {
  TempDirectory folder;
  save(folder.path(), 1, 2, 0, 1, -1, kLarger);
  // A limit on file size fails a write just as a full device does (EFBIG for ENOSPC).
  for (const std::int64_t limit : {1000, 5000, 100000, 380000}) {
    const pid_t child = start_child([&]() -> int {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit size{static_cast<rlim_t>(limit), RLIM_INFINITY};
      if (::setrlimit(RLIMIT_FSIZE, &size) != 0) return 98;
      const auto open_files = names_in("/proc/self/fd").size();
      int failures = 0;
      for (int attempt = 0; attempt < 3; ++attempt) {
        try {
          save(folder.path(), 2, 2, 0, 1, -1, kLarger);
        } catch (const Error& error) {
          if (error.code() != ExitCode::io) std::fprintf(stderr, "child: %s\n", error.what());
          failures += error.code() == ExitCode::io;
        }
      }
      const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
      if (::setrlimit(RLIMIT_FSIZE, &none) != 0) return 97;
      if (names_in(folder.path()) != std::set<std::string>{"step-00000001"}) return 96;
      if (names_in("/proc/self/fd").size() != open_files) return 95;
      return failures;
    });
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 3) << "with a limit of " << limit << " bytes";
    expect_reads(Checkpoint::open(folder.path(), 1), 1, 0, 1, kLarger);
  }
  // The same process goes on saving once there is room.
  save(folder.path(), 2, 2, 0, 1, -1, kLarger);
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000002"});
}

TEST(Checkpoint, WhatCannotBeSetAsideLeavesNothingEmpty) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to make folders of another user";
  TempDirectory folder;
  save(folder.path(), 7, 1);
  // Whoever may write into the folder, but not move what others have put there.
  fs::permissions(folder.path(), fs::perms::all | fs::perms::sticky_bit);
  const pid_t child = start_child([&]() -> int {
    if (::setresuid(65534, 65534, 65534) != 0) return 98;
    try {
      set_aside_newer_checkpoints(folder.path(), 0);
    } catch (const Error& error) {
      return static_cast<int>(error.code());
    }
    return 97;
  });
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ExitCode::io));
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-00000007"});
}

TEST(Checkpoint, AnUnwritableFolderIsAnIoErrorOnEveryRank) {
  TempDirectory folder;
  test::write_text(folder / "file", "");
  std::atomic<int> refused = 0;
  run_loopback(3, {}, [&](std::unique_ptr<Communicator> comm) {
    const Stream stream = Stream::cpu("io");
    std::vector<std::vector<std::byte>> memory;
    const auto slices = slices_of(kTensors, comm->rank(), 3, 0, 1, memory);
    expect_error(ExitCode::io, "file", [&] {
      save_checkpoint({folder / "file"}, metadata_of(1), slices, *comm, stream);
    });
    ++refused;
  });
  EXPECT_EQ(refused, 3);
}

}  // namespace
}  // namespace longhaul::runtime

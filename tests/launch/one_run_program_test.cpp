// Runs of the real program beside another run of the same folder, under signals, and with readers
// of their output that stop or go away.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/io/corpus.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class OneRun : public testing::Test {
 protected:
  std::string heartbeat(const std::string& name) const {
    return job_.output(name, "heartbeat.json");
  }
  /// A run in the background that has done a step.
  std::unique_ptr<Process> start(const std::string& name, std::vector<std::string> sets = {},
                                 const std::string& before = "") {
    sets.emplace_back("training.steps=1000000");
    std::string line = before + "exec " + longhaul_program();
    for (const std::string& word : job_.train(name, sets)) line += " '" + word + "'";
    auto run = std::make_unique<Process>(std::vector<std::string>{"sh", "-c", line});
    EXPECT_TRUE(wait_until([&] { return !run->running() || !job_.steps(name).empty(); }, 50));
    EXPECT_TRUE(run->running()) << run->wait().err;
    return run;
  }
  /// Everything in a run's folder but its heartbeat, with times and contents.
  std::map<std::string, std::string> contents(const std::string& name) const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(job_.output(name))) {
      if (entry.path().filename() == "heartbeat.json") continue;
      found[entry.path()] = std::to_string(entry.last_write_time().time_since_epoch().count());
      if (entry.is_regular_file()) found[entry.path()] += read_text(entry.path());
    }
    return found;
  }
  /// The line of shell that trains to the end, and its output's exit code in the file "code".
  ProcessResult train_into(const std::string& name, const std::string& reader) {
    std::string line = "{ " + longhaul_program();
    for (const std::string& word :
         job_.train(name, {"training.steps=" + std::to_string(kLines), "training.seq_len=16",
                           "training.tokens_per_step=16"}))
      line += " '" + word + "'";
    line += "; echo $? > " + job_.folder().file("code") + "; } | " + reader;
    return run_process({"bash", "-c", line});
  }
  int code() const { return std::stoi(read_text(job_.folder().file("code"))); }

  static constexpr int kLines = 700;
  TrainingJob job_;
};

TEST_F(OneRun, ASecondRunIsRefusedAndOneThatWasTakenOverEnds) {
  ASSERT_EQ(job_.run(0, "run", {"training.steps=5"}).exit_code, 0);
  fs::create_directory(job_.output("run", "checkpoints/step-00000006.tmp-1-2-3"));
  const auto taken_over = start("taken");
  auto taker = nlohmann::ordered_json::parse(read_text(heartbeat("taken")));
  taker["run"] = taker["host"] = "elsewhere";
  fs::remove(heartbeat("taken"));
  write_text(heartbeat("taken"), taker.dump());
  nlohmann::ordered_json record = {
      {"host", "elsewhere"}, {"pid", 4242},          {"started", "2026-01-02 03:04:05 UTC"},
      {"counter", 0},        {"run", "elsewhere-1"}, {"process_start", 17},
      {"process_space", ""}};
  const auto write_heartbeat = [&] {
    record["counter"] = record["counter"].get<int>() + 1;
    write_text(heartbeat("run") + ".new", record.dump());
    fs::rename(heartbeat("run") + ".new", heartbeat("run"));
  };
  const auto before = contents("run");
  write_heartbeat();
  std::jthread elsewhere([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      write_heartbeat();
    }
  });
  const std::vector<std::pair<int, std::vector<std::string>>> runs = {
      {3, {}},
      {0, {"checkpoint.resume=never"}},
      {0, {"comm.backend=loopback", "parallelism.context_parallel_degree=3"}}};
  for (const auto& [ranks, sets] : runs) {
    const ProcessResult second = job_.run(ranks, "run", sets);
    EXPECT_EQ(second.exit_code, 69) << second.err;
    EXPECT_TRUE(has(second.err, "host elsewhere, pid 4242, started 2026-01-02 03:04:05 UTC"))
        << second.err;
    EXPECT_TRUE(has(second.out, "waits ")) << second.out;
    EXPECT_LT(second.seconds, 15);
  }
  // Another output_dir with checkpoints in a folder that a run holds.
  const ProcessResult third = job_.run(0, "third", {"checkpoint.folder=" + job_.output("run")});
  EXPECT_EQ(third.exit_code, 69) << third.err;
  EXPECT_TRUE(has(third.err, "checkpoint.folder = ")) << third.err;
  elsewhere.request_stop();
  elsewhere.join();
  EXPECT_EQ(contents("run"), before);
  // The run that was taken over above has noticed at its next beat.
  const ProcessResult ended = taken_over->wait();
  EXPECT_EQ(ended.exit_code, 69) << ended.err;
  EXPECT_TRUE(has(ended.err, "another run has taken it over (host elsewhere")) << ended.err;
  EXPECT_EQ(read_text(heartbeat("taken")), taker.dump());
}

TEST_F(OneRun, ACheckpointFolderIsOneRunsFromWhicheverSideItIsNamed) {
  const std::vector<std::string> often = {"checkpoint.interval=20", "checkpoint.keep_latest_k=2"};
  const auto with_folder = [&](const std::string& name) {
    std::vector<std::string> sets = often;
    sets.push_back("checkpoint.folder=" + job_.output(name, "checkpoints"));
    return sets;
  };
  // Each folder lies in the output_dir of one run, and the other run names it.
  const auto inside = start("inside", often);
  const auto outside = start("outside", with_folder("later"));
  const auto saved = [&](const std::string& name) {
    return wait_until([&] { return !job_.checkpoints(name).empty(); }, 50);
  };
  ASSERT_TRUE(saved("inside") && saved("later"));
  std::vector<std::string> sets = with_folder("inside");
  sets.emplace_back("checkpoint.resume=never");
  const ProcessResult second = job_.run(0, "second", sets);
  const ProcessResult later = job_.run(0, "later", {"checkpoint.resume=never"});
  for (const ProcessResult& result : {second, later}) {
    EXPECT_EQ(result.exit_code, 69) << result.out << result.err;
    EXPECT_TRUE(has(result.err, "checkpoint.folder = ") && has(result.err, "a run that goes on"))
        << result.err;
  }
  for (const auto& [run, name] : {std::pair(inside.get(), "inside"), {outside.get(), "later"}}) {
    EXPECT_TRUE(run->running());
    EXPECT_EQ(job_.checkpoints(name).empty(), false) << name;
    run->signal(SIGTERM);
    EXPECT_EQ(run->wait().exit_code, 75) << name;
    EXPECT_FALSE(fs::exists(job_.output(name, "checkpoints/heartbeat.json"))) << name;
  }
  // What is set aside is the checkpoints alone, of a killed run whose heartbeat still lies there.
  const auto killed = start("killed", often);
  ASSERT_TRUE(saved("killed"));
  killed->signal(SIGKILL);
  killed->wait();
  ASSERT_TRUE(fs::exists(job_.output("killed", "checkpoints/heartbeat.json")));
  const ProcessResult fresh =
      job_.run(0, "killed", {"checkpoint.resume=never", "training.steps=5"});
  EXPECT_EQ(fresh.exit_code, 0) << fresh.err;
  EXPECT_TRUE(fs::exists(job_.output("killed", "checkpoints/aside-1")));
  EXPECT_FALSE(fs::exists(job_.output("killed", "checkpoints/aside-1/heartbeat.json")));
  EXPECT_FALSE(fs::exists(job_.output("killed", "checkpoints/heartbeat.json")));
  EXPECT_EQ(job_.checkpoints("killed"), std::vector<std::int64_t>{5});
}

TEST_F(OneRun, OfSeveralThatStartTogetherOneTrains) {
  // In a new folder, and in one whose last run was killed.
  for (const bool killed : {false, true}) {
    SCOPED_TRACE(killed);
    if (killed) {
      const auto last = start("run");
      last->signal(SIGKILL);
      last->wait();
    }
    std::vector<std::unique_ptr<Process>> runs;
    for (int run = 0; run < 3; ++run) {
      std::vector<std::string> words = {longhaul_program()};
      for (const std::string& word : job_.train("run", {"training.steps=1000000"}))
        words.push_back(word);
      runs.push_back(std::make_unique<Process>(words));
    }
    const auto running = [&] {
      return std::ranges::count_if(runs, [](const auto& run) { return run->running(); });
    };
    EXPECT_TRUE(wait_until([&] { return running() == 1; }, 50));
    for (const auto& run : runs) {
      if (run->running()) run->signal(SIGTERM);
      const ProcessResult result = run->wait();
      const bool refused = result.exit_code == 69 && has(result.err, "a run that goes on");
      EXPECT_TRUE(refused || result.exit_code == 75) << result.exit_code << result.err;
    }
    EXPECT_FALSE(job_.steps("run").empty());
  }
}

TEST_F(OneRun, SaysThatLabelsHaveWeights) {
  runtime::CorpusWriter writer(job_.corpus() + ".weighed", 256, "bytes");
  writer.append(std::vector<std::int32_t>(200, 7), std::vector<float>(200, 0.3f));
  writer.end_document();
  writer.finish();
  for (const bool weighed : {true, false}) {
    const ProcessResult result =
        job_.run(0, "run",
                 {"training.steps=5", "checkpoint.enable=false", "checkpoint.resume=never",
                  "training.seq_len=16", "training.tokens_per_step=16",
                  "data.corpus=" + job_.corpus() + (weighed ? ".weighed" : "")});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(has(result.out, ", label weights float32\n"), weighed) << result.out;
  }
}

TEST_F(OneRun, AKilledRunsFolderIsTakenOverAtOnceOnItsHost) {
  const auto first = start("run");
  first->signal(SIGKILL);
  first->wait();
  ASSERT_TRUE(fs::exists(heartbeat("run")));
  const ProcessResult next = job_.run(0, "run", {"training.steps=5"});
  EXPECT_EQ(next.exit_code, 0) << next.err;
  EXPECT_TRUE(has(next.out, "took ") && has(next.out, "pid " + std::to_string(first->pid())))
      << next.out;
  EXPECT_LT(next.seconds, 25);
  EXPECT_FALSE(fs::exists(heartbeat("run")));
}

TEST_F(OneRun, InterruptAndHangUpLeaveACheckpointToo) {
  for (const int signal : {SIGINT, SIGHUP}) {
    SCOPED_TRACE(signal);
    const std::string name = "run" + std::to_string(signal);
    const auto run = start(name, {}, "trap - INT HUP; ");
    run->signal(signal);
    const ProcessResult result = run->wait();
    EXPECT_EQ(result.exit_code, 75) << result.err;
    EXPECT_EQ(job_.checkpoints(name), (std::vector{job_.steps(name).rbegin()->first}));
    EXPECT_FALSE(fs::exists(heartbeat(name)));
  }
  const auto unsaved = start("unsaved", {"checkpoint.enable=false"});
  unsaved->signal(SIGINT);
  EXPECT_EQ(unsaved->wait().exit_code, 128 + SIGINT);
}

TEST_F(OneRun, ASignalThatWasIgnoredAtTheStartStaysSo) {
  const auto run = start("run", {}, "trap '' HUP INT; ");
  run->signal(SIGHUP);
  run->signal(SIGINT);
  const std::int64_t then = job_.steps("run").rbegin()->first;
  EXPECT_TRUE(wait_until([&] { return job_.steps("run").rbegin()->first > then + 2; }, 30));
  EXPECT_TRUE(run->running());
  run->signal(SIGTERM);
  EXPECT_EQ(run->wait().exit_code, 75);
}

TEST_F(OneRun, AnInterruptEndsOtherVerbsAsItEndsAnyProgram) {
  Process bench({longhaul_program(), "bench", "peak", "--seconds", "60"});
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  bench.signal(SIGINT);
  EXPECT_EQ(bench.wait().signal, SIGINT);
}

TEST_F(OneRun, ASignalEndsARunThatStillReadsItsConfiguration) {
  const std::string pipe = job_.folder().file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const int signal : {SIGTERM, SIGHUP, SIGINT}) {
    Process run({"sh", "-c", "trap - INT HUP TERM; exec " + longhaul_program() + " train " + pipe},
                {.timeout_seconds = 20});
    // It has left the shell behind.
    const auto has_begun = [&] {
      return read_text("/proc/" + std::to_string(run.pid()) + "/cmdline")
          .starts_with(longhaul_program());
    };
    ASSERT_TRUE(wait_until(has_begun, 20));
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    run.signal(signal);
    const ProcessResult result = run.wait();
    EXPECT_EQ(result.signal, signal) << result.err;
    EXPECT_FALSE(result.timed_out);
  }
}

TEST_F(OneRun, ReadersOfItsOutputMayStopOrGo) {
  const ProcessResult gone = train_into("gone", "head -1");
  EXPECT_FALSE(gone.timed_out);
  EXPECT_EQ(code(), 74) << "the run goes on to its end, and says that its output was lost";
  EXPECT_EQ(job_.steps("gone").size(), std::size_t{kLines});
  fs::remove(job_.folder().file("code"));
  // So many lines are more than the pipe to a reader holds.
  const ProcessResult stuck =
      train_into("stuck", "while [ ! -s " + job_.folder().file("code") + " ]; do sleep 0.05; done");
  EXPECT_FALSE(stuck.timed_out);
  EXPECT_EQ(code(), 74) << "what the pipe had no room for is lost";
  EXPECT_EQ(job_.steps("stuck").size(), std::size_t{kLines});
  const ProcessResult closed =
      run_process({"sh", "-c", longhaul_program() + " train " + job_.config() + " >&-"});
  EXPECT_EQ(closed.exit_code, 74) << closed.err;
  EXPECT_TRUE(fs::exists(job_.output("out")));
}

TEST_F(OneRun, AResumedRunSaysWhatItDoesOtherwise) {
  ASSERT_EQ(job_.run(0, "run", {"training.steps=5"}).exit_code, 0);
  const ProcessResult other =
      job_.run(2, "run", {"model.rope_theta=5e4", "data.mask=causal", "model.hidden_size=32"});
  EXPECT_EQ(other.exit_code, 78) << other.err;
  for (const char* part : {"model.rope_theta = 50000.0: the checkpoint was made with 10000.0",
                           "data.mask = \"causal\"", "model.hidden_size = 32"})
    EXPECT_TRUE(has(other.err, part)) << other.err;
  const ProcessResult told = job_.run(2, "run", {"training.steps=6", "optimizer.lr=5e-3"});
  EXPECT_EQ(told.exit_code, 0) << told.err;
  for (const char* part :
       {"\nupdate   adamw, lr 0.005 after 5 warm-up steps",
        "\nchanged  optimizer.lr from 0.001 to 0.005\n", "\nchanged  training.steps from 5 to 6\n",
        "\nchanged  the learning rate of step 6 from ",
        "\nchanged  parallelism.context_parallel_degree from 1 to 2\n"})
    EXPECT_TRUE(has(told.out, part)) << part << " is not in\n" << told.out;
  const ProcessResult fresh = job_.run(0, "run",
                                       {"training.steps=1", "checkpoint.resume=never",
                                        "model.rope_theta=5e4", "lr_scheduler.warmup_steps=0"});
  EXPECT_EQ(fresh.exit_code, 0) << fresh.err;
  EXPECT_FALSE(has(fresh.out, "changed ")) << fresh.out;
}

}  // namespace
}  // namespace longhaul::test

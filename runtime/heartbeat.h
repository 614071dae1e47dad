#pragma once
// One run a folder: a file that a run keeps alive there, so that no second one writes beside it.
//
// It takes exclusive creation, reading and writing, no locks, and compares counters, never the
// clocks of two hosts: so it holds on network filesystems too.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace longhaul::runtime {

/// A heartbeat as it was found.
struct HeartbeatSeen {
  std::string text;
  double seconds = 0;  ///< when, on the clock of this machine
};

struct HeartbeatOptions {
  /// What the folder is to the user, such as "job.output_dir"; for messages.
  std::string folder_name = "the folder";
  /// What to do when it cannot be written.
  std::string remedy = "give another folder or the right to write there";
  /// Between two beats. A heartbeat that stands still for 6 of them is a dead run's.
  double period_seconds = 5;
  /// What look() found there before: a heartbeat that is still the same has stood still since.
  std::optional<HeartbeatSeen> seen = std::nullopt;
  /// Gets a line when the constructor waits, and one when it takes a folder over.
  std::function<void(const std::string&)> say = [](const std::string&) {};
  /// Asked while the constructor waits: true makes it give up.
  std::function<bool()> give_up = [] { return false; };
};

/// A run's hold on a folder, in FOLDER/heartbeat.json: the host, the process and when it started,
/// when the run started, and a counter that a thread raises once a period.
class Heartbeat {
 public:
  static constexpr const char* kFileName = "heartbeat.json";

  /// The heartbeat in a folder, for HeartbeatOptions::seen: a run that takes several folders, and
  /// waits for the first, need not wait anew for the next. nullopt when there is none.
  static std::optional<HeartbeatSeen> look(const std::filesystem::path& folder);

  /// Takes hold of `folder`, which is created. Where another run's heartbeat is there, it writes
  /// nothing before that run is known to be over: at once where its process was on this host and is
  /// gone, else after its counter has stood still for 6 periods.
  /// Throws Error(launch) naming host, process and start of a run that goes on, or when told to
  /// give up; Error(io) where the folder cannot be written.
  Heartbeat(std::filesystem::path folder, HeartbeatOptions options);
  /// Removes the file, unless another run has taken the folder over. Does not throw.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// To be called before a run writes into the folder. Throws Error(launch) once another run has
  /// taken it over, because this one stood still. Costs nothing while the thread beats; after a
  /// pause it looks at the file itself, so that a run that wakes up writes no more.
  void check();

 private:
  bool create();
  void create_folder() const;
  void claim();
  void beat_for_ever();
  void beat();
  std::string record() const;
  [[noreturn]] void fail_io(const std::filesystem::path& path, const char* what,
                            const std::string& why) const;
  [[noreturn]] void fail_lost() const;

  const std::filesystem::path folder_, path_;
  const HeartbeatOptions options_;
  const std::string run_;      // a word that no other run has
  const std::string started_;  // UTC
  std::mutex file_mutex_;      // of what follows
  int file_ = -1;
  std::int64_t counter_ = 0;
  std::string lost_to_;  // whoever has taken the folder over; set before lost_
  std::atomic<bool> lost_ = false;
  std::atomic<double> last_beat_seconds_ = 0;
  std::mutex mutex_;  // of closing_
  std::condition_variable closing_changed_;
  bool closing_ = false;
  std::thread heart_;
};

}  // namespace longhaul::runtime

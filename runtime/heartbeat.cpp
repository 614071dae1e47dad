#include "runtime/heartbeat.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "runtime/error.h"
#include "runtime/host_name.h"
#include "runtime/io/file.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kStillPeriods = 6;      // then a run is dead
constexpr int kUncheckedPeriods = 3;  // then check() looks itself
constexpr double kPollsPerPeriod = 20;
constexpr double kSettlePeriods = 0.2;  // what a takeover waits for another one to show
constexpr std::size_t kMaxBytes = 4096;

/// Seconds that go on while the machine is suspended.
double now_seconds() {
  timespec now = {};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void sleep_seconds(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::gmtime_r(&now, &parts);
  std::array<char, 64> text = {};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts)};
}

/// Whose process numbers these are: a host's since it started, and on it a container's.
std::string process_space() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code error;
  const std::string space = fs::read_symlink("/proc/self/ns/pid", error).string();
  return boot.empty() || space.empty() ? "" : boot + " " + space;
}

/// State and start of a process, from /proc; nullopt where that does not say.
struct ProcessState {
  char state = '?';
  std::int64_t start_ticks = 0;  // since the host started
};
std::optional<ProcessState> process_state(std::int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');  // a name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream rest(text.substr(name_end + 1));
  ProcessState state;
  rest >> state.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) rest >> skipped;
  rest >> state.start_ticks;
  return rest ? std::optional(state) : std::nullopt;
}

/// A heartbeat file as it was read.
struct Record {
  std::string run, host, started, process_space;
  std::int64_t pid = 0, process_start = 0, counter = 0;

  std::string owner() const {
    return fmt::format("host {}, pid {}, started {}", host, pid, started);
  }
  /// Whether its process was one of this host and is no more; false where that cannot be told.
  bool process_is_gone() const {
    if (process_space.empty() || process_space != runtime::process_space() || host != host_name())
      return false;
    if (pid <= 0 || (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH)) return true;
    const auto state = process_state(pid);
    return state &&
           (state->state == 'Z' || state->state == 'X' || state->start_ticks != process_start);
  }
};

std::optional<Record> parse(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  try {
    Record record;
    record.run = json.at("run").get<std::string>();
    record.host = json.at("host").get<std::string>();
    record.pid = json.at("pid").get<std::int64_t>();
    record.process_start = json.at("process_start").get<std::int64_t>();
    record.process_space = json.at("process_space").get<std::string>();
    record.started = json.at("started").get<std::string>();
    record.counter = json.at("counter").get<std::int64_t>();
    return record;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

std::string owner_of(const std::string& text) {
  const auto record = parse(text);
  return record ? record->owner() : "its heartbeat is not readable";
}

/// The file's text as the filesystem has it now: an NFS client asks the server when a file is
/// opened. nullopt when there is none; what cannot be read is an empty text.
std::optional<std::string> read_heartbeat(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (file < 0) return errno == ENOENT || errno == ESTALE ? std::nullopt : std::optional("");
  std::string text(kMaxBytes, '\0');
  const ssize_t bytes = ::pread(file, text.data(), text.size(), 0);
  ::close(file);
  text.resize(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
  return text;
}

/// In place: the file stays the one that was opened, so a run whose file was replaced cannot touch
/// its successor's.
bool write_in_place(int file, const std::string& text) {
  return ::pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
         ::fdatasync(file) == 0;
}

/// Before another look at the file: waits, and ends the waiting when told to.
void pause(const fs::path& path, const std::string& text, const HeartbeatOptions& options) {
  if (options.give_up())
    fail(ExitCode::launch, options.folder_name, " = ", path.parent_path().string(),
         ": stopped while it waited for the heartbeat of another run (", owner_of(text), ")");
  sleep_seconds(options.period_seconds / kPollsPerPeriod);
}

/// Waits until it is known whether the run of a heartbeat goes on. Returns why it does not, or
/// nullopt when its file has gone. Throws when it does.
std::optional<std::string> why_over(const fs::path& path, std::string& text,
                                    const HeartbeatOptions& options) {
  const double still = kStillPeriods * options.period_seconds;
  const bool seen = options.seen && options.seen->text == text;
  double since = seen ? options.seen->seconds : now_seconds();
  bool said = false;
  for (;;) {
    const auto before = parse(text);
    if (before && before->process_is_gone()) return "that process is no more";
    if (now_seconds() - since > still)
      return fmt::format("its heartbeat has not moved for {:g} s", still);
    if (!said)
      options.say(fmt::format(
          "waits    for up to {:g} s: {} is of a run ({}); if it goes on, it moves within {:g} s",
          still, path.string(), owner_of(text), options.period_seconds));
    said = true;
    pause(path, text, options);
    const auto now_text = read_heartbeat(path);
    if (!now_text) return std::nullopt;
    if (*now_text == text) continue;
    const auto now = parse(*now_text);
    if (before && now && before->run == now->run) {
      fail(ExitCode::launch, options.folder_name, " = ", path.parent_path().string(),
           " belongs to a run that goes on: ", now->owner(), " (", path.string(),
           " moves). Nothing was written. Wait until that run ends, stop it, or set another ",
           options.folder_name);
    }
    text = *now_text;  // another run's, or one that was just being written
    since = now_seconds();
  }
}

}  // namespace

std::optional<HeartbeatSeen> Heartbeat::look(const fs::path& folder) {
  const double now = now_seconds();
  auto text = read_heartbeat(folder / kFileName);
  if (!text) return std::nullopt;
  return HeartbeatSeen{std::move(*text), now};
}

Heartbeat::Heartbeat(fs::path folder, HeartbeatOptions options)
    : folder_(std::move(folder)),
      path_(folder_ / kFileName),
      options_(std::move(options)),
      run_(host_name() + "-" + unique_suffix()),
      started_(utc_now()) {
  claim();
  heart_ = start_thread("the heartbeat", [this] { beat_for_ever(); });
}

Heartbeat::~Heartbeat() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  closing_changed_.notify_one();
  heart_.join();
  ::close(file_);  // first: NFS would keep an open file under another name
  const auto text = read_heartbeat(path_);
  const auto record = text ? parse(*text) : std::nullopt;
  if (record && record->run == run_) ::unlink(path_.c_str());
}

std::string Heartbeat::record() const {
  const std::int64_t pid = ::getpid();
  Json json;
  json["host"] = host_name();
  json["pid"] = pid;
  json["started"] = started_;
  json["counter"] = counter_;
  json["run"] = run_;
  json["process_start"] = process_state(pid).value_or(ProcessState{}).start_ticks;
  json["process_space"] = process_space();
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// False when there is a file already. Exclusive creation: of several runs one gets it.
bool Heartbeat::create() {
  const int file = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0 && errno == EEXIST) return false;
  if (file < 0) fail_io(path_, "cannot be created", std::strerror(errno));
  if (!write_in_place(file, record())) {
    const int code = errno;
    ::close(file);
    ::unlink(path_.c_str());
    fail_io(path_, "cannot be written", std::strerror(code));
  }
  if (file_ >= 0) ::close(file_);
  file_ = file;
  last_beat_seconds_ = now_seconds();
  return true;
}

void Heartbeat::create_folder() const {
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(folder_, error)) && !fs::exists(folder_, error)) {
    fail_io(
        folder_, "cannot be created",
        "it is a link to " + fs::read_symlink(folder_, error).string() + ", which does not exist");
  }
  fs::create_directories(folder_, error);
  if (error) fail_io(folder_, "cannot be created", error.message());
}

void Heartbeat::claim() {
  std::string taken_over;
  for (;;) {
    create_folder();
    if (create()) {
      if (taken_over.empty()) return;
      // Another run may have judged the same file, and removed ours for it.
      sleep_seconds(kSettlePeriods * options_.period_seconds);
      const auto text = read_heartbeat(path_);
      const auto found = text ? parse(*text) : std::nullopt;
      if (!found || found->run != run_) {
        ::close(std::exchange(file_, -1));
        pause(path_, text.value_or(""), options_);
        continue;
      }
      options_.say(taken_over);
      return;
    }
    std::optional<std::string> text = read_heartbeat(path_);
    const auto reason = text ? why_over(path_, *text, options_) : std::nullopt;
    if (!reason || read_heartbeat(path_) != text) {  // it has gone, or is another one by now
      pause(path_, text.value_or(""), options_);
      continue;
    }
    if (::unlink(path_.c_str()) != 0 && errno != ENOENT)
      fail_io(path_, "cannot be removed", std::strerror(errno));
    taken_over = fmt::format("took     {} over from an earlier run ({}): {}", folder_.string(),
                             owner_of(*text), *reason);
  }
}

void Heartbeat::beat_for_ever() {
  std::unique_lock lock(mutex_);
  const std::chrono::duration<double> period(options_.period_seconds);
  while (!lost_ && !closing_changed_.wait_for(lock, period, [&] { return closing_; })) {
    lock.unlock();
    beat();
    lock.lock();
  }
}

/// Looks whether the file is still this run's, and raises the counter. A beat that fails otherwise
/// is one that others do not see; the next one may succeed.
void Heartbeat::beat() {
  const std::lock_guard lock(file_mutex_);
  if (lost_) return;
  const auto text = read_heartbeat(path_);
  if (!text) {
    // After a pause in which others take a folder over, one may have done so, and have ended since.
    if (now_seconds() - last_beat_seconds_ > (kStillPeriods - 1) * options_.period_seconds) {
      lost_to_ = "one that has ended since";
      lost_ = true;
      return;
    }
    // Removed by hand, or by a run that is taking over: whoever creates it has it.
    try {
      create();
    } catch (const Error&) {
    }
    return;
  }
  const auto found = parse(*text);
  if (!found) return;  // the filesystem does not answer, or a run that has it is just writing
  if (found->run != run_) {
    lost_to_ = found->owner();
    lost_ = true;
    return;
  }
  ++counter_;
  if (write_in_place(file_, record())) last_beat_seconds_ = now_seconds();
}

void Heartbeat::check() {
  if (!lost_ && now_seconds() - last_beat_seconds_ > kUncheckedPeriods * options_.period_seconds)
    beat();
  if (lost_) fail_lost();
}

void Heartbeat::fail_io(const fs::path& path, const char* what, const std::string& why) const {
  fail(ExitCode::io, options_.folder_name, " = ", folder_.string(), ": ", path.string(), " ", what,
       ": ", why, "; ", options_.remedy);
}

void Heartbeat::fail_lost() const {
  fail(ExitCode::launch, options_.folder_name, " = ", folder_.string(),
       ": another run has taken it over (", lost_to_, "), since this one (host ", host_name(),
       ", pid ", ::getpid(), ", started ", started_, ") stood still for longer than ",
       kStillPeriods * options_.period_seconds, " s; it ends here and writes nothing more");
}

}  // namespace longhaul::runtime

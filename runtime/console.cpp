#include "runtime/console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <future>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

constexpr std::chrono::seconds kPatience{1};  // with a reader that takes nothing
constexpr std::size_t kPieceBytes = 4096;     // of a write, so that progress shows

/// Waits while the descriptor takes nothing. False when writing failed.
bool write_piece(int descriptor, std::string_view& rest) {
  const ssize_t written = ::write(descriptor, rest.data(), std::min(rest.size(), kPieceBytes));
  if (written >= 0) {
    rest.remove_prefix(static_cast<std::size_t>(written));
    return true;
  }
  if (errno == EINTR) return true;
  if (errno != EAGAIN) return false;
  pollfd ready = {descriptor, POLLOUT, 0};  // somebody else has made it non-blocking
  return ::poll(&ready, 1, -1) >= 0 || errno == EINTR;
}

}  // namespace

struct ConsoleRelay::State {
  int output = -1;  // where lines go in the end
  int input = -1;   // what the process writes
  int wake = -1;    // its other end is closed to end the relay
  std::size_t capacity_bytes = 0;

  std::mutex mutex;
  std::condition_variable changed;
  std::string lines;          // kept for the reader
  std::string partial;        // of a line that has not ended
  std::int64_t left_out = 0;  // lines since the last note
  bool ending = false;        // no more lines will come
  bool done = false;          // and all are written, or nobody takes them
  bool failed = false;        // writing has
  std::int64_t progress = 0;  // pieces written

  ~State() {
    for (const int file : {output, input, wake}) {
      if (file >= 0) ::close(file);
    }
  }
  void keep(std::string_view line);
  void take(std::string_view text);
  void collect();
  void hand_on();
};

/// A line for the reader, behind a note on those that were left out before it.
void ConsoleRelay::State::keep(std::string_view line) {
  const std::string note =
      left_out == 0
          ? ""
          : fmt::format("(console: {} lines left out here, since nobody was reading)\n", left_out);
  if (!line.empty() && lines.size() + note.size() + line.size() > capacity_bytes) {
    ++left_out;
    return;
  }
  lines += note;
  lines += line;
  left_out = 0;
}

void ConsoleRelay::State::take(std::string_view text) {
  const std::lock_guard lock(mutex);
  for (std::size_t end; (end = text.find('\n')) != std::string_view::npos;
       text.remove_prefix(end + 1)) {
    partial += text.substr(0, end + 1);
    keep(partial);
    partial.clear();
  }
  partial += text;
  if (partial.size() > capacity_bytes) {
    partial.clear();
    ++left_out;
  }
  changed.notify_all();
}

/// Reads what the process writes, until the relay ends and everything is read.
void ConsoleRelay::State::collect() {
  std::array<char, 1 << 16> buffer;
  for (bool open = true;;) {
    std::array<pollfd, 2> ready = {pollfd{input, POLLIN, 0}, pollfd{wake, POLLIN, 0}};
    if (open && ::poll(ready.data(), 2, -1) < 0 && errno != EINTR) break;
    if (ready[1].revents != 0) open = false;
    const ssize_t bytes = ::read(input, buffer.data(), buffer.size());
    if (bytes > 0) {
      take({buffer.data(), static_cast<std::size_t>(bytes)});
    } else if (bytes == 0 || (errno != EINTR && errno != EAGAIN) || (errno == EAGAIN && !open)) {
      break;
    }
  }
  const std::lock_guard lock(mutex);
  if (!partial.empty()) keep(partial);
  if (left_out > 0) keep("");
  ending = true;
  changed.notify_all();
}

void ConsoleRelay::State::hand_on() {
  std::unique_lock lock(mutex);
  bool taken = true;  // by the reader
  while (changed.wait(lock, [&] { return !lines.empty() || ending; }), !lines.empty()) {
    const std::string batch = std::exchange(lines, "");
    std::string_view rest = batch;
    lock.unlock();
    while (taken && !rest.empty()) {
      taken = write_piece(output, rest);
      const std::lock_guard counted(mutex);
      failed |= !taken;
      ++progress;
      changed.notify_all();
    }
    lock.lock();
  }
  done = true;
  changed.notify_all();
}

ConsoleRelay::ConsoleRelay(int descriptor, std::size_t capacity_bytes)
    : descriptor_(descriptor), state_(std::make_shared<State>()) {
  State& state = *state_;
  state.capacity_bytes = capacity_bytes;
  std::fflush(stdout);
  state.output = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
  if (state.output < 0)
    fail(ExitCode::io, "descriptor ", descriptor,
         " (1: standard output) is closed; redirect it to a file, or to /dev/null");
  const auto require = [](int result) {
    if (result < 0) fail(ExitCode::internal, "cannot relay the console: ", std::strerror(errno));
  };
  std::array<int, 2> lines = {}, wake = {};
  require(::pipe2(lines.data(), O_CLOEXEC));
  require(::pipe2(wake.data(), O_CLOEXEC));
  state.input = lines[0];
  state.wake = wake[0];
  wake_ = wake[1];
  require(::fcntl(state.input, F_SETFL, O_NONBLOCK));
  require(::dup2(lines[1], descriptor));
  ::close(lines[1]);
  try {
    collector_ = start_thread("the console's collector", [kept = state_] { kept->collect(); });
    writer_ = start_thread("the console's writer", [kept = state_] { kept->hand_on(); });
  } catch (...) {
    ::dup2(state.output, descriptor);
    ::close(wake_);
    if (collector_.joinable()) collector_.join();
    throw;
  }
}

ConsoleRelay::~ConsoleRelay() { close(); }

bool ConsoleRelay::close() {
  State& state = *state_;
  if (!collector_.joinable()) return !state.failed;
  std::fflush(stdout);
  ::dup2(state.output, descriptor_);
  ::close(wake_);
  collector_.join();
  std::unique_lock lock(state.mutex);
  bool moving = true;
  while (moving && !state.done) {
    const std::int64_t seen = state.progress;
    moving = state.changed.wait_for(lock, kPatience,
                                    [&] { return state.done || state.progress != seen; });
  }
  state.failed |= !moving;  // what nobody takes is lost
  const bool written = !state.failed;
  lock.unlock();
  moving ? writer_.join() : writer_.detach();  // left behind in a write that nobody reads
  return written;
}

bool write_within(int descriptor, std::string text, double seconds) {
  const auto written = std::make_shared<std::promise<bool>>();
  std::future<bool> result = written->get_future();
  const auto write = [descriptor, text = std::move(text), written] {
    // One write: the lines of several processes do not mix.
    written->set_value(::write(descriptor, text.data(), text.size()) ==
                       static_cast<ssize_t>(text.size()));
  };
  try {
    std::thread(write).detach();
  } catch (const std::system_error&) {  // no thread is to be had: better to wait than to be silent
    write();
  }
  return result.wait_for(std::chrono::duration<double>(seconds)) == std::future_status::ready &&
         result.get();
}

}  // namespace longhaul::runtime

#pragma once
// The flight recorder: what each rank was doing, readable by the others after it stopped or died.
//
// One small memory-mapped file a rank in the run's folder. A heartbeat thread writes the time every
// 100 ms, so a rank that is stopped or dead differs from one that waits for it. The folder must be
// visible to whoever writes the report; between nodes that is a shared filesystem, which may lag.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace longhaul::runtime {

/// An operation under way. Names longer than 63 bytes (communicators: 31) are cut.
struct FlightOperation {
  std::string_view name;
  std::string_view communicator;
  int peer = -1;  ///< world rank; -1: several or none
  std::int64_t sequence = 0;
};

class FlightRecorder {
 public:
  /// Creates or overwrites the rank's file in `folder`. Throws Error(io).
  FlightRecorder(const std::string& folder, int rank);
  /// Marks the rank as ended in good order.
  ~FlightRecorder();
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  void set_step(std::int64_t step);
  void set_phase(std::string_view phase);

  /// Around an operation, from any thread; costs about as much as copying the names.
  /// begin() gives what end() takes: -1 when too many operations are open to record another one.
  int begin(const FlightOperation& operation);
  void end(int slot);

 private:
  void beat();

  void* record_ = nullptr;
  std::atomic<unsigned> next_slot_{0};
  std::mutex mutex_;
  std::condition_variable closing_changed_;
  bool closing_ = false;
  std::thread heart_;
};

/// begin() and end() of one scope; does nothing without a recorder. An operation that throws stays
/// open, so that the report of a hang still shows it.
class FlightScope {
 public:
  FlightScope(FlightRecorder* recorder, const FlightOperation& operation)
      : recorder_(recorder), slot_(recorder != nullptr ? recorder->begin(operation) : -1) {}
  ~FlightScope() {
    if (recorder_ != nullptr && std::uncaught_exceptions() == exceptions_) recorder_->end(slot_);
  }
  FlightScope(const FlightScope&) = delete;
  FlightScope& operator=(const FlightScope&) = delete;

 private:
  FlightRecorder* recorder_;
  int slot_;
  int exceptions_ = std::uncaught_exceptions();
};

std::string flight_file(const std::string& folder, int rank);

/// A rank whose heartbeat is older than this at the time of a report counts as stopped.
constexpr double kStoppedAfterSeconds = 1.5;

/// What ranks 0..ranks-1 did at `now`: first those that stopped, with the step and operation they
/// stopped in, then those that merely wait, those that compute, and those without a readable
/// record.
std::string hang_report(
    const std::string& folder, int ranks,
    std::chrono::system_clock::time_point now = std::chrono::system_clock::now());

}  // namespace longhaul::runtime

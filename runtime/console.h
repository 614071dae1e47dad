#pragma once
// Printing that never stops the program: a reader of its output may go away, or stop reading.

#include <cstddef>
#include <memory>
#include <string>
#include <thread>

namespace longhaul::runtime {

/// While it lives, what the process writes to a descriptor goes through it: lines are kept, up to
/// `capacity_bytes`, for a thread that hands them on. Whoever writes never waits for the reader.
/// Lines that do not fit are left out, and a line says how many; once the reader has closed, or
/// writing fails otherwise, all are.
class ConsoleRelay {
 public:
  static constexpr std::size_t kCapacityBytes = std::size_t{1} << 20;

  /// For stdout, descriptor 1. Throws Error(io) where the descriptor is closed: the next file to be
  /// opened would take its place, and the lines.
  explicit ConsoleRelay(int descriptor = 1, std::size_t capacity_bytes = kCapacityBytes);
  /// Gives the descriptor back. Waits for lines on their way, but no longer than a second for a
  /// reader that takes none.
  ~ConsoleRelay();
  /// The same, earlier. False when lines are lost that no note stands for: the output is closed or
  /// full, or its reader is gone or takes no more.
  bool close();
  ConsoleRelay(const ConsoleRelay&) = delete;
  ConsoleRelay& operator=(const ConsoleRelay&) = delete;

 private:
  struct State;
  const int descriptor_;
  int wake_ = -1;
  std::shared_ptr<State> state_;    // shared with a writer that may be left behind
  std::thread collector_, writer_;  // not joinable once closed
};

/// What a program says that ends with exit code 74 because of its output.
inline constexpr const char* kOutputLost =
    "writing to standard output failed: it is closed, full, or its reader is gone or reads no more";

/// Writes a text from another thread, for at most `seconds`. False when that was not enough, or
/// when writing failed.
bool write_within(int descriptor, std::string text, double seconds);

}  // namespace longhaul::runtime

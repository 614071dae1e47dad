// What a process prints never stops it: readers that are slow, stuck or gone.
#include "runtime/console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <sstream>
#include <thread>

#include "runtime/error.h"
#include "tests/support/expect_error.h"

namespace longhaul::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// A pipe whose writing end is a console.
class Console : public ::testing::Test {
 protected:
  Console() {
    ::signal(SIGPIPE, SIG_IGN);  // for good: writers that were left behind meet it
    EXPECT_EQ(::pipe(ends_), 0);
  }
  ~Console() override {
    close_reader();
    ::close(ends_[1]);
  }
  void close_reader() {
    if (ends_[0] >= 0) ::close(ends_[0]);
    ends_[0] = -1;
  }
  int console() const { return ends_[1]; }
  void print(const std::string& text) const {
    ASSERT_EQ(::write(ends_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  /// Reads until the text ends so.
  std::string read_until(const std::string& end) {
    std::string text(1 << 22, '\0');
    std::size_t have = 0;
    while (have < text.size() && !std::string_view(text).substr(0, have).ends_with(end)) {
      const ssize_t bytes = ::read(ends_[0], text.data() + have, text.size() - have);
      if (bytes <= 0) break;
      have += static_cast<std::size_t>(bytes);
      read_bytes_ = have;
    }
    text.resize(have);
    return text;
  }
  static std::string line(int number) {
    std::string text = "line " + std::to_string(number) + " ";
    text.resize(99, '.');
    return text + "\n";
  }

 protected:
  int ends_[2] = {-1, -1};
  std::atomic<std::size_t> read_bytes_ = 0;  // by read_until
};

TEST_F(Console, LinesArriveAsTheyWereWritten) {
  std::string all;
  {
    ConsoleRelay relay(console());
    for (int i = 0; i < 100; ++i) {
      print(line(i));
      all += line(i);
    }
    print("no end of ");
    print("line");
    all += "no end of line";
    EXPECT_TRUE(relay.close());
  }
  EXPECT_EQ(read_until("line"), all);
  print("its own again\n");
  EXPECT_EQ(read_until("\n"), "its own again\n");
}

TEST_F(Console, AReaderThatStopsBlocksNobodyAndIsToldWhatItMissed) {
  constexpr int kLines = 20'000;  // 2 MB; the pipe holds 64 KiB, the relay 100,000 bytes
  const auto begin = Clock::now();
  std::optional<ConsoleRelay> relay(std::in_place, console(), 100'000);
  for (int i = 0; i < kLines; ++i) print(line(i));
  EXPECT_LT(seconds_since(begin), 20) << "a write waited for the reader";
  std::string text;
  std::thread reader([&] { text = read_until("the end\n"); });
  // By then the relay has handed on what it held first, and has room again.
  while (read_bytes_ < 110'000 && seconds_since(begin) < 60)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  print("the end\n");
  relay.reset();
  reader.join();

  std::istringstream lines(text);
  int arrived = 0, left_out = 0, next = 0;
  bool ended = false;
  for (std::string each; std::getline(lines, each);) {
    if (each == "the end") {
      ended = true;
    } else if (each.starts_with("(console: ")) {
      const int missing = std::stoi(each.substr(10));
      left_out += missing;
      next += missing;
    } else {
      EXPECT_EQ(each + "\n", line(next));
      ++arrived;
      ++next;
    }
  }
  EXPECT_TRUE(ended);
  EXPECT_GT(left_out, kLines / 2);
  EXPECT_EQ(arrived + left_out, kLines);
}

TEST_F(Console, AReaderThatIsStuckHoldsUpTheEndForASecondOnly) {
  auto begin = Clock::now();
  {
    ConsoleRelay relay(console());
    for (int i = 0; i < 2'000; ++i) print(line(i));
    begin = Clock::now();
    EXPECT_FALSE(relay.close()) << "what nobody has read is lost";
    EXPECT_FALSE(relay.close());
  }
  EXPECT_LT(seconds_since(begin), 10);
  begin = Clock::now();
  EXPECT_FALSE(write_within(console(), std::string(5000, '!'), 0.2));
  EXPECT_LT(seconds_since(begin), 5);
}

TEST_F(Console, AReaderThatIsGoneStopsNobody) {
  close_reader();
  const auto begin = Clock::now();
  {
    const ConsoleRelay relay(console());
    for (int i = 0; i < 20'000; ++i) print(line(i));
  }
  EXPECT_LT(seconds_since(begin), 20);
  EXPECT_FALSE(write_within(console(), "an error\n", 5));
}

TEST_F(Console, AClosedDescriptorIsAnIoError) {
  test::expect_error(ExitCode::io, "is closed", [] { const ConsoleRelay relay(987); });
}

}  // namespace
}  // namespace longhaul::runtime

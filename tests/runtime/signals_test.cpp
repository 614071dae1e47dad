// Which signals ask a run to stop, and which are left as the process was started with.
#include "runtime/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

namespace longhaul::runtime {
namespace {

/// Whatever a test changes is put back.
class Signals : public ::testing::Test {
 protected:
  ~Signals() override {
    signals::clear();
    for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP, SIGPIPE}) ::signal(signal, SIG_DFL);
  }
};

TEST_F(Signals, AreNoted) {
  signals::install();
  signals::clear();
  EXPECT_EQ(signals::requested(), 0);
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) {
    ASSERT_EQ(raise(signal), 0);
    EXPECT_EQ(signals::requested(), signal);
  }
  signals::clear();
  EXPECT_EQ(signals::requested(), 0);
}

TEST_F(Signals, ThatWereIgnoredStayIgnored) {
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) {
    ::signal(signal, SIG_IGN);
    signals::install();
    ASSERT_EQ(raise(signal), 0);
    EXPECT_EQ(signals::requested(), 0) << "signal " << signal;
    ::signal(signal, SIG_DFL);
  }
}

TEST_F(Signals, ASecondInterruptEndsAtOnce) {
  const auto interrupted = [](int first, int second) {
    signals::install();
    raise(first);
    raise(second);
    ::_exit(3);
  };
  EXPECT_EXIT(interrupted(SIGINT, SIGINT), testing::ExitedWithCode(130), "");
  EXPECT_EXIT(interrupted(SIGTERM, SIGINT), testing::ExitedWithCode(3), "");
  EXPECT_EXIT(interrupted(SIGINT, SIGTERM), testing::ExitedWithCode(3), "");
}

TEST_F(Signals, AClosedPipeIsAnErrorOfTheWriter) {
  signals::install();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  EXPECT_EQ(write(ends[1], "x", 1), -1);
  close(ends[1]);
}

}  // namespace
}  // namespace longhaul::runtime

#include "runtime/signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "runtime/error.h"

namespace longhaul::runtime::signals {
namespace {

// A signal handler has no other way to tell anybody: the mutable globals of the process.
std::atomic<int> last_signal{0};
std::atomic<bool> interrupted{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
              "only lock-free atomics may be used in a handler");

extern "C" void longhaul_note_signal(int signal) {
  if (signal == SIGINT && interrupted.exchange(true)) ::_exit(128 + SIGINT);
  last_signal = signal;
}

void set(int signal, void (*handler)(int)) {
  struct sigaction action = {}, before = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (sigaction(signal, nullptr, &before) != 0 ||
      (before.sa_handler != SIG_IGN && sigaction(signal, &action, nullptr) != 0)) {
    fail(ExitCode::internal, "cannot handle signal ", signal, ": ", std::strerror(errno));
  }
}

}  // namespace

void install() {
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) set(signal, longhaul_note_signal);
  set(SIGPIPE, SIG_IGN);
}

int requested() { return last_signal; }
void clear() {
  last_signal = 0;
  interrupted = false;
}

}  // namespace longhaul::runtime::signals

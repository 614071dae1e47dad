#include "runtime/signals.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "runtime/error.h"

namespace longhaul::runtime::signals {
namespace {

// A signal handler has no other way to tell anybody: the one mutable global of the process.
std::atomic<int> last_signal{0};
static_assert(std::atomic<int>::is_always_lock_free,
              "only lock-free atomics may be used in a handler");

extern "C" void longhaul_note_signal(int signal) { last_signal = signal; }

}  // namespace

void install() {
  struct sigaction action = {};
  action.sa_handler = longhaul_note_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGUSR1, SIGTERM}) {
    if (sigaction(signal, &action, nullptr) != 0) {
      fail(ExitCode::internal, "cannot handle signal ", signal, ": ", std::strerror(errno));
    }
  }
}

int requested() { return last_signal; }
void clear() { last_signal = 0; }

}  // namespace longhaul::runtime::signals

// The program: the only place that turns errors into exits.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <thread>

#include "launch/cli.h"
#include "runtime/console.h"
#include "runtime/cores.h"
#include "runtime/cpu_level.h"
#include "runtime/device_environment.h"
#include "runtime/error.h"
#include "runtime/signals.h"

namespace {

using longhaul::runtime::Error;
using longhaul::runtime::ExitCode;
using longhaul::runtime::kOutputLost;

// This process's rank among several, as the launcher tells it: MPI may not be up, or no longer.
int launcher_rank() {
  struct Names {
    const char *rank, *size;
  };
  for (const Names& names :
       {Names{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, Names{"PMI_RANK", "PMI_SIZE"},
        Names{"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}}) {
    const char* rank = std::getenv(names.rank);
    const char* size = std::getenv(names.size);
    if (rank != nullptr && size != nullptr) return std::atoi(size) > 1 ? std::atoi(rank) : -1;
  }
  return -1;
}

// Every rank finds the same fault in a command line or configuration; rank 0 tells all of it, the
// others the first problem only, in case it is theirs alone.
std::string shortened(const std::string& message) {
  const auto heading = message.find('\n');
  const auto first = heading == std::string::npos ? heading : message.find('\n', heading + 1);
  return first == std::string::npos ? message
                                    : message.substr(0, first) + "\n(rank 0 lists them all)";
}

// mpirun ends a job with SIGCONT, SIGTERM and SIGKILL, about a second apart.
volatile std::sig_atomic_t continued = 0;
extern "C" void longhaul_note_continued(int) { continued = 1; }

// Most faults meet all ranks at once, and one message does. Once a rank has told and left, the
// launcher ends the others: they wait a moment for that before they speak themselves. True when
// there is no need to.
bool told_by_another(int rank) {
  using std::chrono::milliseconds;
  const auto ending = [&] {
    return continued != 0 || (rank > 0 && longhaul::runtime::signals::requested() == SIGTERM);
  };
  if (ending()) {  // SIGKILL follows, unless the signal came from somebody else
    std::this_thread::sleep_for(milliseconds(2200));
    return false;
  }
  if (rank == 0) return false;
  for (int waited = 0; waited < 500 + 50 * std::min(rank, 5); waited += 10) {
    std::this_thread::sleep_for(milliseconds(10));
    if (ending()) return true;
  }
  return false;
}

int report(ExitCode code, std::string message) {
  const int rank = launcher_rank();
  const bool own = code == ExitCode::internal || code == ExitCode::memory || code == ExitCode::io;
  if (rank >= 0 && !own && told_by_another(rank)) return static_cast<int>(code);
  if (rank > 0 && code == ExitCode::config) message = shortened(message);
  while (message.ends_with('\n')) message.pop_back();
  std::string text = "longhaul: error: ";
  const std::string name = "rank " + std::to_string(rank);
  if (rank >= 0 && !message.starts_with(name + " ")) text += "[" + name + "] ";
  text += message + "\n";
  std::fflush(stdout);
  std::fflush(stderr);
  // Nobody is left to tell if it fails, and a reader that has stopped reading may not stop the end.
  static_cast<void>(longhaul::runtime::write_within(STDERR_FILENO, std::move(text), 2));
  return static_cast<int>(code);
}

// A descriptor that is closed at start would go to the first file that is opened, and what is
// printed would be written into it. In its place stands one that refuses what it is for: printing
// then fails, as it should.
void occupy_standard_descriptors() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_RDONLY};  // of input, output, errors
  for (int fd = 0; fd < 3; ++fd) {
    if (::fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", kModes[fd]) != fd)
      std::_Exit(static_cast<int>(ExitCode::io));
  }
}

// Whether something that was printed is lost. Asked once, at the end: no verb looks after its
// printing, and a console that is gone ends no run.
bool output_is_lost() {
  std::cout.flush();
  return std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
}

}  // namespace

int main(int argc, char** argv) {
  longhaul::runtime::wait_passively(argv);
  longhaul::runtime::set_device_environment();
  // Under mpirun stdout is a pipe; progress must not wait for a full block.
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 14);
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is an error of write(), exit 74
  std::signal(SIGPIPE, SIG_IGN);  // and so is a reader that is gone
  occupy_standard_descriptors();
  if (launcher_rank() >= 0) std::signal(SIGCONT, longhaul_note_continued);
  int code = 0;
  try {
    longhaul::runtime::cpu_level();  // a level that cannot be had is refused before anything else
    code = longhaul::launch::run_command_line(argc, argv);
  } catch (const Error& error) {
    code = report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    code = report(ExitCode::memory, "out of memory");
  } catch (const std::exception& error) {
    // Some printing throws (fmt::print) where other printing only leaves its mark on the stream.
    const bool lost = output_is_lost();
    code = lost ? report(ExitCode::io, kOutputLost) : report(ExitCode::internal, error.what());
  } catch (...) {
    code = report(ExitCode::internal, "an exception of an unknown type");
  }
  // After an error threads may still wait for peers that are gone: no destructor of a static may
  // run beside them.
  if (code != 0) {
    std::fflush(stdout);
    std::_Exit(code);
  }
  if (output_is_lost()) code = report(ExitCode::io, kOutputLost);
  return code;
}

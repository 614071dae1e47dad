#pragma once
// One exception type for every library: what happened, and the exit code that `main` returns for
// it.

#include <sstream>
#include <stdexcept>
#include <string>

namespace longhaul::runtime {

/// Exit codes of the program, after sysexits.h where a code fits.
enum class ExitCode : int {
  done = 0,
  usage = 64,      ///< bad command line
  data = 65,       ///< bad corpus, case or checkpoint
  launch = 69,     ///< process grid, devices or launcher do not fit
  internal = 70,   ///< broken invariant, or numerics
  memory = 71,     ///< out of memory
  io = 74,         ///< reading or writing failed
  preempted = 75,  ///< stopped early with a good checkpoint: requeue
  hang = 76,       ///< a wait outlived its deadline
  disagree = 77,   ///< ranks differ in config, build or data
  config = 78,     ///< bad configuration
};

/// Thrown by every library of the project; only `main` turns it into an exit.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// Concatenates its arguments through an ostringstream.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Throws Error(code) with the concatenated parts.
template <class... Parts>
[[noreturn]] void fail(ExitCode code, const Parts&... parts) {
  throw Error(code, concat(parts...));
}

/// Names the calling thread's rank in later messages of failed checks (streams inherit it); empty
/// for none.
void set_thread_rank(const std::string& name);
const std::string& thread_rank();

namespace detail {
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& message);
}

/// Throws Error(internal) with the place, the rank and the values unless `condition` holds; in
/// every build type. Usage: LONGHAUL_CHECK(k.size(0) == rows, "k has ", k.size(0), " rows; expected
/// ", rows).
#define LONGHAUL_CHECK(condition, ...)                                                     \
  do {                                                                                     \
    if (!(condition))                                                                      \
      ::longhaul::runtime::detail::check_failed(#condition, __FILE__, __LINE__,            \
                                                ::longhaul::runtime::concat(__VA_ARGS__)); \
  } while (false)

}  // namespace longhaul::runtime

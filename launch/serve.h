#pragma once
// `longhaul serve`: an attention server outside of any job.

#include <optional>
#include <string>

namespace longhaul::launch {

struct ServeOptions {
  std::string listen;                  ///< "unix:PATH" or "tcp:HOST:PORT"
  std::string token_file;              ///< the secret of the jobs that it serves
  int threads = 0;                     ///< 0: of the environment, or one a core
  std::optional<std::string> pretend;  ///< parse_pretending(); tasks only take time, answers are 0
};

/// Serves until SIGTERM, SIGINT, SIGHUP or SIGUSR1; then finishes the task at hand, removes its
/// socket and returns 0. Throws Error where it cannot listen, and for a token file that is not
/// secret.
int run_serve(const ServeOptions& options);

}  // namespace longhaul::launch

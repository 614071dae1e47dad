#include "launch/serve.h"

#include <unistd.h>

#include <iostream>

#include "launch/pretend.h"
#include "parallel/disaggregation/remote_task.h"
#include "parallel/disaggregation/task_server.h"
#include "runtime/cgroup.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/host_name.h"
#include "runtime/signals.h"

namespace longhaul::launch {
namespace {

int threads_of(const ServeOptions& options) {
  if (options.threads > 0) return options.threads;
  const int environment = runtime::threads_of_environment();
  return environment > 0 ? environment : runtime::available_cores();
}

void say(const std::string& line) { std::cout << line << std::endl; }

}  // namespace

int run_serve(const ServeOptions& options) {
  const int threads = threads_of(options);
  std::optional<attention::Pretence> pretence;
  if (options.pretend) {
    const Pretending pretending = parse_pretending(*options.pretend);
    if (!pretending.slowdowns.empty()) {
      runtime::fail(runtime::ExitCode::usage, "--pretend ", *options.pretend,
                    ": a server is no rank; give slow=FACTOR without one");
    }
    pretence = pretending.model;
  }
  const std::string build = parallel::task_build(pretence.has_value());
  runtime::signals::install();
  parallel::TaskServer server(
      {.address = runtime::net::parse_address(options.listen),
       .token = runtime::net::Token::load(options.token_file),
       .make_stream = [threads] { return runtime::Stream::cpu("tasks", threads); },
       .most_task_bytes = runtime::node_memory_bytes(),
       .pretence = pretence,
       .say = say,
       .build = build});
  say("attention server at " + server.address().text() + " on host " + runtime::host_name() + ", " +
      runtime::counted(threads, "thread") + ", process " + std::to_string(::getpid()));
  say(build);
  server.run([] { return runtime::signals::requested() != 0; });
  say("stopped");
  return 0;
}

}  // namespace longhaul::launch

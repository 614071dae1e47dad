#pragma once
// An external attention server: does the tasks of any number of ranks, each as soon as it is whole,
// one after another, and keeps nothing of them.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "attention/pretence.h"
#include "runtime/net/hello.h"
#include "runtime/stream.h"

namespace longhaul::parallel {

struct TaskServerOptions {
  runtime::net::Address address;
  runtime::net::Token token;
  /// Makes the stream that tasks run on; anew after a task that failed.
  std::function<runtime::Stream()> make_stream;
  /// Larger tasks are refused before memory is taken for them.
  std::int64_t most_task_bytes = 0;
  /// Tasks only take time: answers are 0.
  std::optional<attention::Pretence> pretence = {};
  /// Gets a line when a rank connects, leaves, is refused or breaks the protocol.
  std::function<void(const std::string&)> say = [](const std::string&) {};
  std::string build = {};     ///< as ExternalServersOptions::build
  double hello_seconds = 10;  ///< that a connection has for its hello
  double frame_seconds =
      600;  ///< in which something of a frame that has begun must arrive or leave
};

class TaskServer {
 public:
  /// Listens from now on. Throws as net::Listener.
  explicit TaskServer(TaskServerOptions options);
  ~TaskServer();
  /// With the port that was chosen.
  const runtime::net::Address& address() const;
  /// Serves until `stop` says so, which is asked a few times a second; then takes no more, finishes
  /// the task at hand, hands out what is done and closes.
  void run(const std::function<bool()>& stop);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::parallel

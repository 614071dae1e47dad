#pragma once
// The thread of an attention server that computes.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "attention/pretence.h"
#include "runtime/net/frame.h"
#include "runtime/stream.h"

namespace longhaul::parallel {

/// A task of a connection, and what became of it: an answer's frame, or a failure's.
struct TaskJob {
  std::int64_t connection = 0;
  runtime::net::Frame frame;
  std::string failed;  ///< why; empty: it is done
};

/// Does one task at a time. Used by one thread.
class TaskWorker {
 public:
  TaskWorker(std::function<runtime::Stream()> make_stream,
             std::optional<attention::Pretence> pretence);
  /// Finishes the task at hand.
  ~TaskWorker();
  TaskWorker(const TaskWorker&) = delete;
  TaskWorker& operator=(const TaskWorker&) = delete;

  bool busy() const { return busy_; }
  /// Not while it is busy.
  void start(TaskJob job);
  /// What it has done since; it is no longer busy then.
  std::optional<TaskJob> finished();
  /// Readable when a task is done: to poll for.
  int fd() const { return wake_.fd(); }

 private:
  void work();
  void do_task(TaskJob& job);

  const std::function<runtime::Stream()> make_stream_;
  const std::optional<attention::Pretence> pretence_;
  std::optional<runtime::Stream> stream_;  // of the thread
  runtime::net::Socket wake_;              // an eventfd
  bool busy_ = false;                      // of the caller
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<TaskJob> given_, done_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace longhaul::parallel

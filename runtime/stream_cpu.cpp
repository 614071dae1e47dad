// CPU streams and their events behind stream_impl.h: a queue and the thread that runs it.
#include <omp.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/error.h"
#include "runtime/stream_impl.h"
#include "runtime/threads.h"

namespace longhaul::runtime::detail {
namespace {

class CpuEvent final : public EventImpl {
 public:
  explicit CpuEvent(std::string stream) : stream_(std::move(stream)) {}
  DeviceKind kind() const override { return DeviceKind::cpu; }
  bool complete() const override {
    std::lock_guard lock(mutex_);
    return done_;
  }
  void synchronize(Deadline deadline) const override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [&] { return done_; })) {
      fail(ExitCode::hang, "stream '", stream_, "' did not reach an event before its deadline");
    }
    if (error_) std::rethrow_exception(error_);
  }
  /// Blocks a stream's thread; the work it waits for has deadlines of its own. Rethrows its error.
  void wait() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
    if (error_) std::rethrow_exception(error_);
  }
  double seconds_since(const EventImpl& begin) const override {
    return std::chrono::duration<double>(reached() - static_cast<const CpuEvent&>(begin).reached())
        .count();
  }
  void signal(std::exception_ptr error) {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
      reached_ = Clock::now();
      error_ = std::move(error);
    }
    changed_.notify_all();
  }

 private:
  Clock::time_point reached() const {
    std::lock_guard lock(mutex_);
    LONGHAUL_CHECK(done_, "stream '", stream_, "' has not reached the event yet");
    return reached_;
  }

  const std::string stream_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;
  Clock::time_point reached_;
  std::exception_ptr error_;
};

/// A queue and the thread that runs it.
class CpuStream final : public StreamImpl {
 public:
  CpuStream(const std::string& stream_name, int threads)
      : StreamImpl({DeviceKind::cpu, 0}, stream_name),
        threads_(threads),
        worker_(start_thread("stream '" + stream_name + "'",
                             [this, rank = thread_rank()] { run(rank); })) {}

  ~CpuStream() override {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_one();
    worker_.join();
  }

  void host_task(std::function<void()> task, const char* source) override {
    push({std::move(task), nullptr, source});
  }

  std::shared_ptr<EventImpl> record(bool) override {
    auto event = std::make_shared<CpuEvent>(name);
    push({nullptr, event, ""});
    return event;
  }

  void wait(const std::shared_ptr<EventImpl>& event) override {
    LONGHAUL_CHECK(event->kind() == DeviceKind::cpu, "CPU stream '", name,
                   "' cannot wait for a CUDA event");
    const auto blocked = [this, event] {
      const auto begin = Clock::now();
      static_cast<const CpuEvent&>(*event).wait();
      waited_ += (Clock::now() - begin).count();
    };
    host_task(blocked, kWaitingPart);
  }

  void poison(std::exception_ptr error) override {
    host_task([error] { std::rethrow_exception(error); }, __FILE__);
  }
  int threads() const override { return threads_; }
  double waited_seconds() const override {
    return std::chrono::duration<double>(Clock::duration(waited_.load())).count();
  }

 private:
  struct Item {
    std::function<void()> task;
    std::shared_ptr<CpuEvent> event;  // signalled instead of a task
    const char* source = "";
  };

  void push(Item item) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
    }
    changed_.notify_one();
  }

  void run(const std::string& rank) {
    enter_stream_thread();
    set_thread_rank(rank);
    omp_set_num_threads(threads_);
    std::exception_ptr error;
    for (;;) {
      Item item;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
        if (queue_.empty()) return;
        item = std::move(queue_.front());
        queue_.pop_front();
      }
      if (item.event) {
        item.event->signal(error);
      } else if (!error) {
        try {
          part_clock.run(item.task, item.source);
        } catch (...) {
          error = std::current_exception();
        }
      }
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  bool closing_ = false;
  std::atomic<Clock::rep> waited_{0};
  std::thread worker_;  // last: starts when the rest is ready
};

}  // namespace

std::shared_ptr<StreamImpl> make_cpu_stream(const std::string& name, int threads) {
  return std::make_shared<CpuStream>(name, threads);
}

}  // namespace longhaul::runtime::detail

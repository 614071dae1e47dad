#pragma once
// Work that several threads do at once, and whose results are taken in the order in which it was
// given.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <mutex>
#include <stop_token>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::runtime {

/// Given and taken by one thread. Destroying it drops what has not begun, and waits for the rest.
template <class Result>
class OrderedWork {
 public:
  /// `what` names the threads where the system refuses one.
  OrderedWork(int threads, std::string_view what) {
    LONGHAUL_CHECK(threads >= 1, "work for ", threads, " threads");
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(
          start_thread<std::jthread>(what, [this](const std::stop_token& stop) { run(stop); }));
    }
  }

  ~OrderedWork() {
    for (std::jthread& thread : threads_) thread.request_stop();
  }
  OrderedWork(const OrderedWork&) = delete;
  OrderedWork& operator=(const OrderedWork&) = delete;

  template <class Work>
  void give(Work work) {
    std::packaged_task<Result()> task(std::move(work));
    results_.push_back(task.get_future());
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

  /// Given and not yet taken.
  std::int64_t pending() const { return std::ssize(results_); }

  /// Waits for the oldest result. Throws what its work threw.
  Result take() {
    LONGHAUL_CHECK(!results_.empty(), "a result of no work");
    std::future<Result> oldest = std::move(results_.front());
    results_.pop_front();
    return oldest.get();
  }

 private:
  void run(const std::stop_token& stop) {
    while (true) {
      std::packaged_task<Result()> task;
      {
        std::unique_lock lock(mutex_);
        if (!wake_.wait(lock, stop, [this] { return !waiting_.empty(); })) return;
        if (stop.stop_requested()) return;
        task = std::move(waiting_.front());
        waiting_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<std::packaged_task<Result()>> waiting_;  // under the mutex
  std::deque<std::future<Result>> results_;
  std::vector<std::jthread> threads_;  // last: they use the others
};

}  // namespace longhaul::runtime

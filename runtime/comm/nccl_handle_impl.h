#pragma once
// NCCL's handle with deadlines. Private to runtime/comm/, CUDA builds only.

#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "runtime/cuda_check_impl.h"
#include "runtime/stream_impl.h"
#include "runtime/threads.h"

namespace longhaul::runtime::detail {

/// One NCCL communicator, the operations under way on it, and the thread that watches them. NCCL's
/// calls on it are made one at a time. After a failure the handle is gone and every call repeats
/// the first error.
class NcclHandle {
 public:
  using Lock = std::unique_lock<std::mutex>;

  NcclHandle(std::string name, Device device, double timeout_seconds)
      : name_(std::move(name)), device_(device), timeout_seconds_(timeout_seconds) {}
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  /// Takes the communicator that start(ncclComm_t*) makes, when it is ready. Once, before anything
  /// else.
  template <class Start>
  void init(const std::string& what, const Start& start) {
    Lock lock(mutex_);
    use_device(device_);
    settle(start(&comm_), what, lock);
    check(ncclCommUserRank(comm_, &rank_), what, lock);
    check(ncclCommCount(comm_, &size_), what, lock);
    watcher_ = start_thread("NCCL", [this, rank = thread_rank()] { watch(rank); });
  }
  /// Runs calls(call, comm, stream) as one group on the stream, where each NCCL call goes through
  /// call(), and watches it until it is over.
  template <class Calls>
  void group(const std::string& what, const Stream& stream, const Calls& calls) {
    Lock lock(mutex_);
    if (error_) std::rethrow_exception(error_);
    const cudaStream_t handle = cuda_stream(stream);
    Event ready = stream.record();
    check(ncclGroupStart(), what, lock);
    ncclResult_t code = ncclSuccess;
    const auto call = [&](ncclResult_t result) {
      if (code == ncclSuccess && result != ncclInProgress) code = result;
    };
    calls(call, comm_, handle);
    const ncclResult_t ended = ncclGroupEnd();
    settle(code == ncclSuccess ? ended : code, what, lock);
    under_way_.push_back({what, std::move(ready), stream.record(), stream.impl(), std::nullopt});
    changed_.notify_one();
  }
  /// Runs start(ncclComm_t), a collective call that changes no stream, and waits until it is done.
  template <class Start>
  void configure(const std::string& what, const Start& start) {
    Lock lock(mutex_);
    if (error_) std::rethrow_exception(error_);
    use_device(device_);
    settle(start(comm_), what, lock);
  }

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  Device device() const { return device_; }
  double timeout_seconds() const { return timeout_seconds_; }
  /// For operations that become ready from now on.
  double set_timeout(double seconds) { return timeout_seconds_.exchange(seconds); }

 private:
  struct Operation {
    std::string what;
    Event ready, over;  // the stream's work before it, and it
    std::weak_ptr<StreamImpl> stream;
    std::optional<Deadline> deadline;  // from when it was ready
  };
  std::string where(const std::string& what) const;
  /// Gives up and throws for a failure; "in progress" is none.
  void check(ncclResult_t code, const std::string& what, Lock& lock);
  void settle(ncclResult_t code, const std::string& what, Lock& lock);
  void give_up(ExitCode code, std::string message, Lock& lock);
  void watch(const std::string& rank);

  const std::string name_;
  const Device device_;
  std::atomic<double> timeout_seconds_;
  std::mutex mutex_;
  std::condition_variable changed_;
  ncclComm_t comm_ = nullptr;
  int rank_ = 0, size_ = 0;
  std::deque<Operation> under_way_;
  std::exception_ptr error_;
  bool closing_ = false;
  std::thread watcher_;
};

}  // namespace longhaul::runtime::detail

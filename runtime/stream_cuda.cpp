// CUDA streams, events and memory behind stream_impl.h.
//
// Host tasks. A driver callback (cudaLaunchHostFunc) will not do: the driver may run the callbacks
// of all streams on one thread, and a task that waits for another rank would then hold up the task
// it waits for. So each stream has a thread of its own for its host tasks. By stream memory
// operations the stream counts up in pinned memory when it comes to a task, and waits until another
// counter there says that the task is over. The thread only reads and writes memory: a thread that
// loads a kernel keeps the driver to itself until all streams are idle, and so until this one's
// task is over.
//
// Errors. Each stream numbers what is enqueued, and remembers the first failure and its number. An
// event knows how far into which streams it reaches (a vector clock), so it carries exactly the
// failures that came before it, in whatever stream, without any work on the device.

#include <cuda.h>
#include <omp.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/backoff_impl.h"
#include "runtime/cuda_check_impl.h"
#include "runtime/device_environment.h"
#include "runtime/stream_impl.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace detail {
namespace {

using Sequence = std::uint64_t;

/// The first failure of a stream's host tasks and what place it has in the stream's order.
class Failure {
 public:
  void set(std::exception_ptr error, Sequence at) {
    std::lock_guard lock(mutex_);
    if (error_ && at_ <= at) return;
    error_ = std::move(error);
    at_ = at;
  }
  std::exception_ptr before(Sequence end) const {
    std::lock_guard lock(mutex_);
    return error_ && at_ < end ? error_ : nullptr;
  }

 private:
  mutable std::mutex mutex_;
  std::exception_ptr error_;
  Sequence at_ = 0;
};

/// How far into each stream a point reaches: everything numbered below the value comes before it.
using Reach = std::map<std::shared_ptr<const Failure>, Sequence>;

std::exception_ptr failure_in(const Reach& reach) {
  for (const auto& [failure, end] : reach) {
    if (std::exception_ptr error = failure->before(end)) return error;
  }
  return nullptr;
}

class CudaEvent final : public EventImpl {
 public:
  CudaEvent(std::string stream, Device device, cudaStream_t handle, Reach reach, bool timed = false)
      : stream_(std::move(stream)), device_(device), timed_(timed), reach_(std::move(reach)) {
    LONGHAUL_CUDA_CHECK(
        cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming));
    const cudaError_t recorded = cudaEventRecord(event_, handle);
    if (recorded != cudaSuccess) in_destructor(cudaEventDestroy(event_));
    LONGHAUL_CUDA_CHECK(recorded);
  }
  ~CudaEvent() override { in_destructor(cudaEventDestroy(event_)); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  DeviceKind kind() const override { return DeviceKind::cuda; }
  bool complete() const override {
    use_device(device_);
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) {
      in_destructor(cudaGetLastError());  // "not ready" is an answer, not a failure
      return false;
    }
    LONGHAUL_CUDA_CHECK(state);
    return true;
  }
  void synchronize(Deadline deadline) const override {
    Backoff backoff;
    while (!complete()) {
      if (Clock::now() >= deadline) {
        if (const std::exception_ptr error = failure_in(reach_)) std::rethrow_exception(error);
        fail(ExitCode::hang, "stream '", stream_, "' on ", to_string(device_),
             " did not reach an event before its deadline");
      }
      backoff.pause();
    }
    if (const std::exception_ptr error = failure_in(reach_)) std::rethrow_exception(error);
  }

  double seconds_since(const EventImpl& begin) const override {
    const auto& other = static_cast<const CudaEvent&>(begin);
    for (const CudaEvent* event : {&other, this}) {
      LONGHAUL_CHECK(event->timed_, "an event of stream '", event->stream_, "' keeps no time");
      LONGHAUL_CHECK(event->complete(), "stream '", event->stream_,
                     "' has not reached the event yet");
    }
    float milliseconds = 0;
    LONGHAUL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, other.event_, event_));
    return milliseconds / 1e3;
  }

  cudaEvent_t handle() const { return event_; }
  const Reach& reach() const { return reach_; }

 private:
  const std::string stream_;
  const Device device_;
  const bool timed_;
  const Reach reach_;
  cudaEvent_t event_ = nullptr;
};

/// cuStreamWaitValue32 and cuStreamWriteValue32 of the driver, found at run time so that the
/// program also starts without a driver.
using ValueOperation = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
ValueOperation find_value_operation(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  LONGHAUL_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    fail(ExitCode::launch, "the CUDA driver has no ", name,
         "; install a driver of CUDA 12 or later");
  }
  return reinterpret_cast<ValueOperation>(function);
}

/// What a stream and the thread of its host tasks tell each other, in pinned memory of the process,
/// which is no pool's: a pool's free parts stay whole.
class Counters {
 public:
  Counters() {
    std::lock_guard lock(mutex());
    if (left().empty()) {
      auto* page = reinterpret_cast<std::uint32_t*>(pinned_allocate(kPageBytes));
      if (page == nullptr) fail(ExitCode::memory, "out of pinned host memory: a page asked for");
      for (std::int64_t at = 0; at < kPageBytes; at += kPlaceBytes)
        left().push_back(page + at / static_cast<std::int64_t>(sizeof(*page)));
    }
    place_ = left().back();
    left().pop_back();
    place_[0] = place_[1] = 0;
  }
  /// The stream has passed everything by then.
  ~Counters() {
    std::lock_guard lock(mutex());
    left().push_back(place_);
  }
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  std::uint32_t* reached() const { return place_; }   ///< the thread polls it
  std::uint32_t* done() const { return place_ + 1; }  ///< the device polls it

 private:
  static constexpr std::int64_t kPageBytes = 4096, kPlaceBytes = 64;
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::vector<std::uint32_t*>& left() {
    static auto* places = new std::vector<std::uint32_t*>;  // streams may outlive static objects
    return *places;
  }
  std::uint32_t* place_ = nullptr;
};

/// The thread that runs the host tasks of one stream, in order.
class HostTasks {
 public:
  struct Item {
    std::function<void()> task;
    Reach before;              // what the stream's order puts before it
    Sequence sequence = 0;     // its number in the stream
    std::uint32_t ticket = 0;  // what the counters become, when its turn comes and afterwards
  };

  /// `counters` outlive this, and what it makes the stream wait for.
  HostTasks(const Counters& counters, cudaStream_t stream, std::shared_ptr<Failure> failure)
      : reached_(counters.reached()),
        done_(counters.done()),
        stream_(stream),
        failure_(std::move(failure)) {
    worker_ = start_thread("host tasks", [this, rank = thread_rank()] { run(rank); });
  }
  ~HostTasks() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_one();
    // A stream whose device has failed comes to no task any more. This thread asks, so that the
    // worker never waits for the driver.
    Backoff backoff;
    while (!ended_) {
      const cudaError_t state = cudaStreamQuery(stream_);
      if (state != cudaSuccess && state != cudaErrorNotReady) device_failed_ = true;
      backoff.pause();
    }
    in_destructor(cudaGetLastError());  // "not ready" is an answer, not a failure
    worker_.join();
  }
  HostTasks(const HostTasks&) = delete;
  HostTasks& operator=(const HostTasks&) = delete;

  /// Queues the task and makes the stream wait for it.
  void push(Item item) {
    static const ValueOperation write_value = find_value_operation("cuStreamWriteValue32"),
                                wait_value = find_value_operation("cuStreamWaitValue32");
    const auto on_device = [](std::uint32_t* counter) {
      void* address = nullptr;
      LONGHAUL_CUDA_CHECK(cudaHostGetDevicePointer(&address, counter, 0));
      return reinterpret_cast<CUdeviceptr>(address);
    };
    const auto check = [](CUresult code, const char* call) {
      LONGHAUL_CHECK(code == CUDA_SUCCESS, call, " failed with CUresult ", static_cast<int>(code));
    };
    const CUdeviceptr reached = on_device(reached_), done = on_device(done_);
    item.ticket = ++tickets_;
    const std::uint32_t ticket = item.ticket;
    // Behind a fence: what the stream wrote before is there for the task.
    check(write_value(stream_, reached, ticket, CU_STREAM_WRITE_VALUE_DEFAULT),
          "cuStreamWriteValue32");
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
    }
    changed_.notify_one();
    check(wait_value(stream_, done, ticket, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
  }

 private:
  bool reached(std::uint32_t ticket) const {
    const std::uint32_t now = std::atomic_ref(*reached_).load(std::memory_order_acquire);
    return static_cast<std::int32_t>(now - ticket) >= 0;  // counters begin again at 2^32
  }
  /// The device's work has no deadline of its own here: whoever waits for the stream has one.
  void wait_for(std::uint32_t ticket) const {
    Backoff backoff;
    while (!reached(ticket)) {
      if (device_failed_) fail(ExitCode::internal, "the device failed before a host task");
      backoff.pause();
    }
  }
  void run(const std::string& rank) {
    enter_stream_thread();
    set_thread_rank(rank);
    static_cast<void>(
        ::prctl(PR_SET_TIMERSLACK, 1000));  // ns; by default each sleep lasts 50 us more
    omp_set_num_threads(1);
    for (;;) {
      Item item;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
        if (queue_.empty()) break;
        item = std::move(queue_.front());
        queue_.pop_front();
      }
      try {
        wait_for(item.ticket);
        if (!failure_in(item.before)) item.task();
      } catch (...) {
        failure_->set(std::current_exception(), item.sequence);
      }
      std::atomic_ref(*done_).store(item.ticket, std::memory_order_release);
    }
    ended_ = true;
  }

  std::uint32_t *const reached_, *const done_;
  const cudaStream_t stream_;
  const std::shared_ptr<Failure> failure_;
  std::uint32_t tickets_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  bool closing_ = false;
  std::atomic<bool> device_failed_ = false, ended_ = false;
  std::thread worker_;
};

/// A place among the device's hardware queues. Streams that share a queue run in the order in which
/// they were enqueued, so one that waits for a host task may hold up the stream that the task waits
/// for; CUDA does not see such waits. So there are never more streams than queues.
class QueuePlace {
 public:
  QueuePlace(const std::string& stream, Device device) : taken_(taken(device.index)) {
    const char* set = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    const int queues = set == nullptr ? kMaxQueues : std::clamp(std::atoi(set), 1, kMaxQueues);
    if (++taken_ <= queues) return;
    --taken_;
    fail(ExitCode::launch, "stream '", stream, "' would be number ", queues + 1,
         " of this process on ", to_string(device), ", which has ", queues,
         " hardware queues (CUDA_DEVICE_MAX_CONNECTIONS, at most ", kMaxQueues,
         "); run fewer ranks in one process, or start a process for each");
  }
  ~QueuePlace() { --taken_; }
  QueuePlace(const QueuePlace&) = delete;
  QueuePlace& operator=(const QueuePlace&) = delete;

 private:
  static constexpr int kMaxQueues = 32;
  static std::atomic<int>& taken(int index) {
    static std::mutex mutex;
    static std::map<int, std::atomic<int>> counts;
    std::lock_guard lock(mutex);
    return counts[index];
  }
  std::atomic<int>& taken_;
};

class CudaStream final : public StreamImpl {
 public:
  CudaStream(const std::string& stream_name, int index, bool high_priority)
      : StreamImpl({DeviceKind::cuda, index}, stream_name),
        place_(stream_name, device),
        failure_(std::make_shared<Failure>()) {
    use_device(device);
    counters_.emplace();
    int least = 0, greatest = 0;
    LONGHAUL_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    LONGHAUL_CUDA_CHECK(cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking,
                                                     high_priority ? greatest : least));
  }
  ~CudaStream() override {
    in_destructor(cudaSetDevice(device.index));
    host_tasks_.reset();  // finishes the queued tasks, so the stream can finish
    in_destructor(cudaStreamSynchronize(handle_));
    in_destructor(cudaStreamDestroy(handle_));
  }

  void host_task(std::function<void()> task, const char*) override {
    std::lock_guard lock(mutex_);
    use_device(device);
    if (!host_tasks_) host_tasks_ = std::make_unique<HostTasks>(*counters_, handle_, failure_);
    host_tasks_->push({std::move(task), reach_now(), next_++, 0});
  }

  std::shared_ptr<EventImpl> record(bool timed) override {
    std::lock_guard lock(mutex_);
    use_device(device);
    return std::make_shared<CudaEvent>(name, device, handle_, reach_now(), timed);
  }

  void wait(const std::shared_ptr<EventImpl>& event) override {
    LONGHAUL_CHECK(event->kind() == DeviceKind::cuda, "CUDA stream '", name,
                   "' cannot wait for a CPU event");
    const auto& other = static_cast<const CudaEvent&>(*event);
    std::lock_guard lock(mutex_);
    use_device(device);
    LONGHAUL_CUDA_CHECK(cudaStreamWaitEvent(handle_, other.handle(), 0));
    for (const auto& [failure, end] : other.reach()) {
      Sequence& known = waited_[failure];
      known = std::max(known, end);
    }
  }

  void poison(std::exception_ptr error) override { failure_->set(std::move(error), 0); }
  void* cuda_handle() const override { return handle_; }

 private:
  Reach reach_now() const {
    Reach reach = waited_;
    reach[failure_] = next_;
    return reach;
  }

  const QueuePlace place_;
  std::optional<Counters> counters_;
  const std::shared_ptr<Failure> failure_;
  cudaStream_t handle_ = nullptr;
  std::mutex mutex_;
  Sequence next_ = 1;  // 0 is the place of a failure from outside
  Reach waited_;
  std::unique_ptr<HostTasks> host_tasks_;  // from the first task on
};

}  // namespace

std::shared_ptr<StreamImpl> make_cuda_stream(const std::string& name, int index,
                                             bool high_priority) {
  const int devices = cuda_device_count();
  if (index < 0 || index >= devices) {
    fail(ExitCode::launch, "stream '", name, "' asks for CUDA device ", index, ", but ", devices,
         devices == 1 ? " is" : " are", " usable; check the driver and CUDA_VISIBLE_DEVICES");
  }
  return std::make_shared<CudaStream>(name, index, high_priority);
}

std::byte* cuda_allocate(Device device, std::int64_t bytes) {
  use_device(device);
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    // The pool reports it, after all pools have given back what nobody uses.
    in_destructor(cudaGetLastError());
    return nullptr;
  }
  LONGHAUL_CUDA_CHECK(code);
  return static_cast<std::byte*>(data);
}

void cuda_free(Device device, std::byte* data) {
  in_destructor(cudaSetDevice(device.index));
  in_destructor(cudaFree(data));
}

std::byte* pinned_allocate(std::int64_t bytes) {
  void* data = nullptr;
  const cudaError_t code = cudaHostAlloc(&data, static_cast<std::size_t>(bytes),
                                         cudaHostAllocPortable | cudaHostAllocMapped);
  if (code == cudaErrorMemoryAllocation) {
    in_destructor(cudaGetLastError());
    return nullptr;
  }
  LONGHAUL_CUDA_CHECK(code);
  return static_cast<std::byte*>(data);
}

}  // namespace detail

// Streams here may wait for work that another thread of this process has yet to enqueue, so neither
// the loading of a kernel at its first launch (which may wait for the whole device) nor a shared
// hardware queue may stand in between.
void set_device_environment() {
  static const bool done = [] {
    return setenv("CUDA_MODULE_LOADING", "EAGER", 0) == 0 &&
           setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0) == 0 &&
           // Several communicators a device: launches keep their order.
           setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0) == 0 &&
           setenv("NCCL_RAS_ENABLE", "0", 0) == 0;  // opens no port of its own
  }();
  LONGHAUL_CHECK(done, "setenv failed");
}

int cuda_device_count() {
  set_device_environment();
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  switch (code) {
    case cudaSuccess:
      return count;
    // No driver, a driver too old for this runtime, or no device: there is nothing to use.
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
      detail::in_destructor(cudaGetLastError());
      return 0;
    default:
      fail(ExitCode::launch, "the CUDA devices cannot be counted: ", cudaGetErrorName(code), ", ",
           cudaGetErrorString(code));
  }
}

std::string cuda_device_name(int index) {
  cudaDeviceProp properties{};
  LONGHAUL_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return properties.name;
}

DeviceMemory cuda_device_memory(int index) {
  detail::use_device({DeviceKind::cuda, index});
  std::size_t free = 0, total = 0;
  LONGHAUL_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<std::int64_t>(total), static_cast<std::int64_t>(free)};
}

}  // namespace longhaul::runtime

#include "runtime/stream.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "runtime/error.h"
#include "runtime/stream_impl.h"

namespace longhaul::runtime {
namespace detail {
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
  void signal(std::exception_ptr error) {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
      error_ = std::move(error);
    }
    changed_.notify_all();
  }

 private:
  const std::string stream_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr error_;
};

/// A queue and the thread that runs it.
class CpuStream final : public StreamImpl {
 public:
  CpuStream(const std::string& stream_name, int threads)
      : StreamImpl({DeviceKind::cpu, 0}, stream_name),
        threads_(threads),
        worker_([this, rank = thread_rank()] { run(rank); }) {}

  ~CpuStream() override {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_one();
    worker_.join();
  }

  void enqueue(std::function<void()> task) override { push({std::move(task), nullptr}); }

  std::shared_ptr<EventImpl> record() override {
    auto event = std::make_shared<CpuEvent>(name);
    push({nullptr, event});
    return event;
  }

  void wait(const std::shared_ptr<EventImpl>& event) override {
    LONGHAUL_CHECK(event->kind() == DeviceKind::cpu, "CPU stream '", name,
                   "' cannot wait for a CUDA event");
    enqueue([this, event] {
      const auto begin = Clock::now();
      static_cast<const CpuEvent&>(*event).wait();
      waited_ += (Clock::now() - begin).count();
    });
  }

  void poison(std::exception_ptr error) override {
    enqueue([error] { std::rethrow_exception(error); });
  }
  int threads() const override { return threads_; }
  double waited_seconds() const override {
    return std::chrono::duration<double>(Clock::duration(waited_.load())).count();
  }

 private:
  struct Item {
    std::function<void()> task;
    std::shared_ptr<CpuEvent> event;  // signalled instead of a task
  };

  void push(Item item) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
    }
    changed_.notify_one();
  }

  void run(const std::string& rank) {
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
          item.task();
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

}  // namespace detail

Deadline deadline_in(double seconds) {
  constexpr double kFar = 1e9;  // 32 years: more than that overflows a time point
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(std::min(seconds, kFar)));
}

std::string to_string(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : concat("cuda:", device.index);
}

Buffer::Buffer(std::shared_ptr<detail::Pool> pool, std::byte* data, std::int64_t bytes)
    : pool_(std::move(pool)), data_(data), bytes_(bytes) {}
Buffer::~Buffer() {
  if (pool_) pool_->give_back(data_, bytes_);
}
Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::move(other.pool_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}
Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

bool Event::complete() const { return !impl_ || impl_->complete(); }
void Event::synchronize(Deadline deadline) const {
  if (impl_) impl_->synchronize(deadline);
}

Stream Stream::cpu(const std::string& name, int threads) {
  LONGHAUL_CHECK(threads >= 1, "stream '", name, "' needs at least one thread, got ", threads);
  return Stream(std::make_shared<detail::CpuStream>(name, threads));
}
Stream Stream::cuda(const std::string& name, int index, bool high_priority) {
  return Stream(detail::make_cuda_stream(name, index, high_priority));
}

Stream Stream::sibling(const std::string& name) const {
  const Device where = device();
  if (where.kind != DeviceKind::cpu) return cuda(name, where.index, true);
  const Stream made = cpu(name, threads());
  made.impl_->poisons_new_memory = impl_->poisons_new_memory;
  return made;
}

Device Stream::device() const { return impl_->device; }
const std::string& Stream::name() const { return impl_->name; }
int Stream::threads() const { return impl_->threads(); }
void Stream::enqueue(std::function<void()> task) const { impl_->enqueue(std::move(task)); }
void* Stream::cuda_handle() const {
  LONGHAUL_CHECK(impl_->device.kind == DeviceKind::cuda, "stream '", impl_->name,
                 "' is not a CUDA stream");
  return impl_->cuda_handle();
}
const std::shared_ptr<detail::StreamImpl>& Stream::impl() const { return impl_; }
Event Stream::record() const { return Event(impl_->record()); }
void Stream::wait(const Event& event) const {
  if (event.impl()) impl_->wait(event.impl());
}
void Stream::synchronize(Deadline deadline) const { record().synchronize(deadline); }
Buffer Stream::allocate(std::int64_t bytes) const {
  LONGHAUL_CHECK(bytes >= 0, "cannot allocate ", bytes, " bytes");
  std::byte* data = impl_->pool->take(bytes);
  if (impl_->poisons_new_memory && bytes > 0)
    enqueue([=] { std::memset(data, 0xff, static_cast<std::size_t>(bytes)); });
  return Buffer(impl_->pool, data, bytes);
}
Buffer Stream::allocate_host(std::int64_t bytes) const {
  LONGHAUL_CHECK(bytes >= 0, "cannot allocate ", bytes, " bytes");
  std::byte* data = impl_->host_pool->take(bytes);
  return Buffer(impl_->host_pool, data, bytes);
}
double Stream::waited_seconds() const { return impl_->waited_seconds(); }
MemoryUse Stream::memory() const { return impl_->pool->use(); }
void Stream::reset_peak() const { impl_->pool->reset_peak(); }
void Stream::poison_new_memory() const {
  LONGHAUL_CHECK(impl_->device.kind == DeviceKind::cpu, "stream '", impl_->name,
                 "' is not a CPU stream: its memory cannot be poisoned");
  impl_->poisons_new_memory = true;
}

}  // namespace longhaul::runtime

#pragma once
// Streams, events and stream-ordered memory: the same contract on the CPU and on CUDA.
//
// A stream runs its work in order. On CUDA it is a cudaStream_t; on the CPU it is a queue with its
// own thread, so streams overlap on both. Between streams the only ordering is an event.
//
// Memory is stream-ordered: a Buffer belongs to the pool of one stream. Freeing it returns it to
// that pool at once, and the next allocation on the same stream may reuse it, because whatever
// reads or writes the new buffer is enqueued later. Work on another stream that uses the buffer
// must be waited for by the owning stream before the buffer is freed.
//
// An exception in a task poisons its stream: later tasks are skipped, events recorded after it
// carry the exception to whoever waits for them, and synchronize() rethrows it.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/device.h"
#include "runtime/part_times.h"

namespace longhaul::runtime {

using Clock = std::chrono::steady_clock;
/// A point in time after which a wait is a hang. Every wait of the host takes one.
using Deadline = Clock::time_point;
Deadline deadline_in(double seconds);

/// Of a stream's pool.
struct MemoryUse {
  std::int64_t current_bytes = 0;  ///< of live buffers
  std::int64_t peak_bytes = 0;     ///< those at most since the last reset
  std::int64_t held_bytes = 0;     ///< taken from the system
  std::int64_t buffers = 0;        ///< handed out so far
};

/// How often the pools of all streams of this process have asked the system for memory so far. A
/// steady state asks for none.
std::int64_t system_allocations();

namespace detail {
class StreamImpl;
class EventImpl;
class Pool;
}  // namespace detail

/// Owns bytes of a stream's pool (256-byte aligned); returns them when destroyed. Move only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<detail::Pool> pool, std::byte* data, std::int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<detail::Pool> pool_;
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// A point in a stream's work. Copyable; a default event is already complete.
class Event {
 public:
  Event() = default;
  explicit Event(std::shared_ptr<detail::EventImpl> impl) : impl_(std::move(impl)) {}
  bool complete() const;
  /// Blocks the host. Throws Error(hang) past the deadline, or what the stream's work threw.
  void synchronize(Deadline deadline) const;
  const std::shared_ptr<detail::EventImpl>& impl() const { return impl_; }

 private:
  std::shared_ptr<detail::EventImpl> impl_;
};

/// From when the first event's stream reached it to when the second's did. Both of record_timed(),
/// on one device, and complete; on CUDA the device's clock (resolution about half a microsecond).
/// Negative when the second came first.
double seconds_between(const Event& begin, const Event& end);

/// A handle to an in-order queue of work on one device. Copies refer to the same queue; when the
/// last one goes, queued work is finished first.
class Stream {
 public:
  /// A CPU stream. `threads` is the number of OpenMP threads that its tasks may use.
  static Stream cpu(const std::string& name, int threads = 1);
  /// A CUDA stream on device `index`. Throws Error(launch) in a CPU build or without the device.
  static Stream cuda(const std::string& name, int index, bool high_priority = false);

  /// A new stream on the same device, for communication beside compute. On the CPU it has
  /// `threads` OpenMP threads, or as many as this one.
  Stream sibling(const std::string& name, std::optional<int> threads = std::nullopt) const;

  Device device() const;
  const std::string& name() const;
  /// OpenMP threads of a CPU stream's tasks; 1 on CUDA.
  int threads() const;

  /// Work of a CPU stream: what a kernel launch is on CUDA. Throws Error(internal) on a CUDA
  /// stream, whose memory the host cannot read.
  /// `source` names the part of the program whose work it is, for part_times().
  void cpu_task(std::function<void()> task, const char* source = __builtin_FILE()) const;
  /// Work of the host in the stream's order, on either device: runs after all earlier work of the
  /// stream and before all later work, and touches host memory only. On CUDA it stalls the stream
  /// until the host has run it. Kernels enqueued after a failed task still run there; what waits
  /// for them gets the task's error.
  void host_task(std::function<void()> task, const char* source = __builtin_FILE()) const;
  /// cudaStream_t of a CUDA stream. Throws on a CPU stream.
  void* cuda_handle() const;

  Event record() const;
  /// The same, for seconds_between().
  Event record_timed() const;
  /// Later work on this stream runs after `event`. Streams and events of one device kind only.
  void wait(const Event& event) const;
  /// Host: record().synchronize(deadline).
  void synchronize(Deadline deadline) const;

  /// Uninitialised memory for work enqueued on this stream after the call. Throws Error(memory).
  Buffer allocate(std::int64_t bytes) const;
  /// Host memory for this stream's tasks, which write and read it (host_task()), and for its copies
  /// from and to the device: pinned on CUDA, the same as allocate() on the CPU. Not counted by
  /// memory() on CUDA.
  Buffer allocate_host(std::int64_t bytes) const;
  MemoryUse memory() const;
  /// Seconds that a CPU stream's thread has spent blocked on events of other streams; 0 on CUDA.
  double waited_seconds() const;
  /// From now on a CPU stream's tasks are timed, a part of the program each.
  void time_parts() const;
  /// Of the tasks that have run since time_parts(), most seconds first.
  std::vector<PartTimes> part_times() const;
  /// What tasks of that part, enqueued before or after, do; for part_times() alone.
  void count_work(const Work& work, const char* source = __builtin_FILE()) const;
  void reset_peak() const;
  /// From now on allocate() hands out memory whose every bit is set, NaN in every float dtype, by
  /// work on the stream: reads of what nothing has written show. CPU streams only; siblings made
  /// later do the same.
  void poison_new_memory() const;
  const std::shared_ptr<detail::StreamImpl>& impl() const;

 private:
  explicit Stream(std::shared_ptr<detail::StreamImpl> impl);
  std::shared_ptr<detail::StreamImpl> impl_;
};

}  // namespace longhaul::runtime

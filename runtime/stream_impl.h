#pragma once
// What a device provides behind Stream, Event and Buffer. Private to runtime/.

#include <exception>
#include <memory>
#include <string>

#include "runtime/part_clock_impl.h"
#include "runtime/pool_impl.h"
#include "runtime/stream.h"

namespace longhaul::runtime::detail {

class EventImpl {
 public:
  virtual ~EventImpl() = default;
  virtual DeviceKind kind() const = 0;
  virtual bool complete() const = 0;
  virtual void synchronize(Deadline deadline) const = 0;
  /// Of an event of the same kind. Both were recorded timed, and are complete.
  virtual double seconds_since(const EventImpl& begin) const = 0;
};

class StreamImpl {
 public:
  StreamImpl(Device device, std::string name)
      : device(device),
        name(std::move(name)),
        pool(Pool::make(device)),
        host_pool(device.kind == DeviceKind::cpu ? pool : Pool::make(device, true)) {}
  /// After a derived stream has finished its work.
  virtual ~StreamImpl() {
    pool->end();
    host_pool->end();
  }
  virtual void host_task(std::function<void()> task, const char* source) = 0;
  /// `timed`: for seconds_since().
  virtual std::shared_ptr<EventImpl> record(bool timed) = 0;
  virtual void wait(const std::shared_ptr<EventImpl>& event) = 0;
  /// Everything recorded on the stream from now on, and everything still unfinished, carries
  /// `error`. For watchers of work that runs outside the stream's tasks.
  virtual void poison(std::exception_ptr error) = 0;
  virtual int threads() const { return 1; }
  virtual double waited_seconds() const { return 0; }
  virtual void* cuda_handle() const { return nullptr; }

  const Device device;
  const std::string name;
  const std::shared_ptr<Pool> pool;
  bool poisons_new_memory = false;
  PartClock part_clock;                   // of a CPU stream
  const std::shared_ptr<Pool> host_pool;  // pinned memory on CUDA, the pool itself on the CPU
};

/// Whether this thread runs tasks of a stream; such threads say so before their first.
bool on_stream_thread();
void enter_stream_thread();

// stream_cpu.cpp
std::shared_ptr<StreamImpl> make_cpu_stream(const std::string& name, int threads);

// stream_cuda.cpp, or by stream_no_cuda.cpp in a CPU build.
std::shared_ptr<StreamImpl> make_cuda_stream(const std::string& name, int index,
                                             bool high_priority);
std::byte* cuda_allocate(Device device, std::int64_t bytes);  // nullptr when out of memory
void cuda_free(Device device, std::byte* data);
std::byte* pinned_allocate(std::int64_t bytes);  // nullptr when out of memory; for good

}  // namespace longhaul::runtime::detail

#include "runtime/stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/error.h"
#include "runtime/reserve.h"
#include "runtime/stream_impl.h"

namespace longhaul::runtime {
namespace detail {
namespace {
thread_local bool runs_tasks = false;
}  // namespace
bool on_stream_thread() { return runs_tasks; }
void enter_stream_thread() { runs_tasks = true; }
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

double seconds_between(const Event& begin, const Event& end) {
  LONGHAUL_CHECK(begin.impl() && end.impl(), "seconds_between takes events of record_timed()");
  LONGHAUL_CHECK(begin.impl()->kind() == end.impl()->kind(),
                 "the time between an event of the CPU and one of a CUDA device");
  return end.impl()->seconds_since(*begin.impl());
}

Stream::Stream(std::shared_ptr<detail::StreamImpl> impl) : impl_(std::move(impl)) {
  impl_->pool->serve(impl_);
}
Stream Stream::cpu(const std::string& name, int threads) {
  LONGHAUL_CHECK(threads >= 1, "stream '", name, "' needs at least one thread, got ", threads);
  return Stream(detail::make_cpu_stream(name, threads));
}
Stream Stream::cuda(const std::string& name, int index, bool high_priority) {
  return Stream(detail::make_cuda_stream(name, index, high_priority));
}

Stream Stream::sibling(const std::string& name, std::optional<int> threads) const {
  const Device where = device();
  if (where.kind != DeviceKind::cpu) return cuda(name, where.index, true);
  const Stream made = cpu(name, threads.value_or(this->threads()));
  made.impl_->poisons_new_memory = impl_->poisons_new_memory;
  return made;
}

Device Stream::device() const { return impl_->device; }
const std::string& Stream::name() const { return impl_->name; }
int Stream::threads() const { return impl_->threads(); }
void Stream::cpu_task(std::function<void()> task, const char* source) const {
  LONGHAUL_CHECK(impl_->device.kind == DeviceKind::cpu, "stream '", impl_->name, "' is on ",
                 to_string(impl_->device),
                 ": the CPU's work cannot run on it; launch a kernel, or use host_task()");
  impl_->host_task(std::move(task), source);
}
void Stream::host_task(std::function<void()> task, const char* source) const {
  impl_->host_task(std::move(task), source);
}
void* Stream::cuda_handle() const {
  LONGHAUL_CHECK(impl_->device.kind == DeviceKind::cuda, "stream '", impl_->name,
                 "' is not a CUDA stream");
  return impl_->cuda_handle();
}
const std::shared_ptr<detail::StreamImpl>& Stream::impl() const { return impl_; }
Event Stream::record() const { return Event(impl_->record(false)); }
Event Stream::record_timed() const { return Event(impl_->record(true)); }
void Stream::wait(const Event& event) const {
  if (event.impl()) impl_->wait(event.impl());
}
void Stream::synchronize(Deadline deadline) const { record().synchronize(deadline); }
Buffer Stream::allocate(std::int64_t bytes) const {
  LONGHAUL_CHECK(bytes >= 0, "cannot allocate ", bytes, " bytes");
  std::byte* data = impl_->pool->take(bytes);
  if (impl_->poisons_new_memory && bytes > 0)
    impl_->host_task([=] { std::memset(data, 0xff, static_cast<std::size_t>(bytes)); }, __FILE__);
  return Buffer(impl_->pool, data, bytes);
}
Buffer Stream::allocate_host(std::int64_t bytes) const {
  LONGHAUL_CHECK(bytes >= 0, "cannot allocate ", bytes, " bytes");
  std::byte* data = impl_->host_pool->take(bytes);
  return Buffer(impl_->host_pool, data, bytes);
}
namespace {
void reserve_in(detail::Pool& pool, std::int64_t bytes, std::int64_t buffers) {
  LONGHAUL_CHECK(bytes >= 0, "cannot reserve ", bytes, " bytes");
  if (bytes > 0) pool.reserve(bytes + (buffers - 1) * detail::Pool::kAlignment);
}
}  // namespace
void reserve_memory(const Stream& stream, std::int64_t bytes, std::int64_t buffers) {
  reserve_in(*stream.impl()->pool, bytes, buffers);
}
void reserve_host_memory(const Stream& stream, std::int64_t bytes, std::int64_t buffers) {
  reserve_in(*stream.impl()->host_pool, bytes, buffers);
}
double Stream::waited_seconds() const { return impl_->waited_seconds(); }
void Stream::time_parts() const { impl_->part_clock.start(); }
std::vector<PartTimes> Stream::part_times() const { return impl_->part_clock.times(); }
void Stream::count_work(const Work& work, const char* source) const {
  impl_->part_clock.count(source, work);
}
MemoryUse Stream::memory() const { return impl_->pool->use(); }
void Stream::reset_peak() const { impl_->pool->reset_peak(); }
void Stream::poison_new_memory() const {
  LONGHAUL_CHECK(impl_->device.kind == DeviceKind::cpu, "stream '", impl_->name,
                 "' is not a CPU stream: its memory cannot be poisoned");
  impl_->poisons_new_memory = true;
}

}  // namespace longhaul::runtime

#include "runtime/pool_impl.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>

#include "runtime/error.h"
#include "runtime/purpose.h"
#include "runtime/shared_memory.h"
#include "runtime/size_text.h"
#include "runtime/stream_impl.h"

namespace longhaul::runtime {
namespace detail {
namespace {

constexpr std::int64_t kSegmentBytes = std::int64_t{2} << 20;     // CUDA's granularity; a huge page
constexpr std::int64_t kMostGrowthBytes = std::int64_t{1} << 30;  // beyond what is asked for
// Before memory is refused, streams get this long to pass what may still use what nobody holds.
// Those of other ranks in this process may be waiting for us.
constexpr double kDrainSeconds = 30;
// Under AddressSanitizer every buffer is a segment of its own, so that an overrun is seen.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSplits = false;
#else
constexpr bool kSplits = true;
#endif

std::atomic<std::int64_t> allocated_segments{0};

std::int64_t rounded_up(std::int64_t bytes, std::int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

/// Every pool of the process.
struct Registry {
  using Segments = std::multimap<std::int64_t, std::byte*>;  // by size
  std::mutex mutex;
  std::vector<std::weak_ptr<Pool>> pools;
  Segments pinned;                 // that ended pools have left
  std::map<int, Segments> device;  // the same, by device
  Segments& left(Device of, bool is_pinned) { return is_pinned ? pinned : device[of.index]; }
};
Registry& registry() {
  static auto* const all = new Registry;  // never destroyed: pools may outlive static objects
  return *all;
}

/// A whole number of huge pages, where the system gives them to who asks: kernels walk over more
/// memory than the tables of small ones reach. Null where there is no more.
std::byte* host_allocate(std::int64_t bytes) {
  const bool huge = bytes % kSegmentBytes == 0;
  const auto size = static_cast<std::size_t>(bytes);
  void* const data = std::aligned_alloc(
      static_cast<std::size_t>(huge ? kSegmentBytes : std::int64_t{Pool::kAlignment}), size);
  if (huge && data != nullptr) static_cast<void>(::madvise(data, size, MADV_HUGEPAGE));
  return static_cast<std::byte*>(data);
}

}  // namespace

std::shared_ptr<Pool> Pool::make(Device device, bool pinned) {
  const std::shared_ptr<Pool> pool(new Pool(device, pinned));
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  std::erase_if(all.pools, [](const std::weak_ptr<Pool>& other) { return other.expired(); });
  all.pools.push_back(pool);
  return pool;
}

Pool::~Pool() {
  // A buffer keeps its pool, so every part is free, and every segment one part.
  for (const auto& [data, part] : parts_) {
    if (keeps()) {
      Registry& all = registry();
      std::lock_guard lock(all.mutex);
      all.left(device_, pinned_).emplace(part.bytes, data);
    } else {
      deallocate({data, part.bytes});
    }
  }
}

void Pool::serve(std::weak_ptr<StreamImpl> stream) {
  std::lock_guard lock(mutex_);
  stream_ = std::move(stream);
  serves_ = true;
}

void Pool::end() {
  std::lock_guard lock(mutex_);
  ended_ = true;
}

Pool::Segment Pool::allocate(std::int64_t bytes) const {
  if (keeps()) {
    Registry& all = registry();
    std::lock_guard lock(all.mutex);
    Registry::Segments& left = all.left(device_, pinned_);
    // One twice as large may hold what a larger request will need.
    const auto found = left.lower_bound(bytes);
    if (found != left.end() && found->first <= (kSplits ? 2 * bytes : bytes)) {
      const Segment segment{found->second, found->first};
      left.erase(found);
      return segment;
    }
  }
  ++allocated_segments;
  if (pinned_) return {pinned_allocate(bytes), bytes};
  if (device_.kind == DeviceKind::cuda) return {cuda_allocate(device_, bytes), bytes};
  if (SharedArena* const arena = stream_memory_arena()) return {arena->allocate(bytes), bytes};
  return {host_allocate(bytes), bytes};
}

void Pool::deallocate(Segment segment) const {
  if (device_.kind == DeviceKind::cuda) {
    cuda_free(device_, segment.data);
    return;
  }
  SharedArena* const arena = stream_memory_arena();
  if (arena != nullptr && arena->offset_of(segment.data)) {
    arena->free(segment.data, segment.bytes);
  } else {
    std::free(segment.data);
  }
}

Pool::Parts::iterator Pool::find_free(std::int64_t wanted) {
  const auto found = free_.lower_bound({wanted, nullptr});
  if (found == free_.end() || (!kSplits && found->first != wanted)) return parts_.end();
  return parts_.find(found->second);
}

Pool::Parts::iterator Pool::try_segment(std::int64_t bytes) {
  const auto [data, held] = allocate(bytes);
  if (data == nullptr) return parts_.end();
  use_.held_bytes += held;
  free_.emplace(held, data);
  return parts_.emplace(data, Part{held, data, true}).first;
}

/// A free part that holds `wanted` in a new segment; end() where the system has no more.
Pool::Parts::iterator Pool::add_segment(std::int64_t wanted) {
  if (!kSplits) return try_segment(wanted);
  const std::int64_t least = rounded_up(wanted, kSegmentBytes),
                     grown =
                         rounded_up(std::min(use_.held_bytes / 8, kMostGrowthBytes), kSegmentBytes);
  auto part = try_segment(std::max(least, grown));
  if (part == parts_.end() && grown > least) part = try_segment(least);
  return part;
}

std::vector<Pool::Segment> Pool::detach_free_segments() {
  std::lock_guard lock(mutex_);
  std::vector<Segment> segments;
  for (auto part = parts_.begin(); part != parts_.end();) {
    const auto next = std::next(part);
    const bool whole = part->second.free && part->second.segment == part->first &&
                       (next == parts_.end() || next->second.segment != part->first);
    if (whole) {
      segments.push_back({part->first, part->second.bytes});
      free_.erase({part->second.bytes, part->first});
      use_.held_bytes -= part->second.bytes;
      parts_.erase(part);
    }
    part = next;
  }
  return segments;
}

void Pool::attach(const std::vector<Segment>& segments) {
  std::lock_guard lock(mutex_);
  for (const auto& [data, bytes] : segments) {
    use_.held_bytes += bytes;
    free_.emplace(bytes, data);
    parts_.emplace(data, Part{bytes, data, true});
  }
}

bool Pool::drain(Deadline deadline) const {
  std::shared_ptr<StreamImpl> stream;
  {
    std::lock_guard lock(mutex_);
    if (!serves_) return false;
    stream = stream_.lock();
  }
  if (!stream) {  // it is ending or has ended, and finishes its work before
    std::lock_guard lock(mutex_);
    return ended_;
  }
  std::shared_ptr<EventImpl> passed;
  try {
    passed = stream->record(false);
    passed->synchronize(deadline);
    return true;
  } catch (const Error&) {
    // The deadline's, the device's, or the stream's own: one that has failed passes what is left
    // without running it.
  }
  try {
    return passed != nullptr && passed->complete();
  } catch (const Error&) {
    return false;
  }
}

/// Those that take from the system what this one takes, and may give it back.
std::vector<std::shared_ptr<Pool>> Pool::pools_of_this_memory() const {
  const Device memory = pinned_ ? Device{} : device_;
  std::vector<std::shared_ptr<Pool>> pools;
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  for (const std::weak_ptr<Pool>& weak : all.pools) {
    std::shared_ptr<Pool> pool = weak.lock();
    if (pool && !pool->pinned_ && pool->device_ == memory) pools.push_back(std::move(pool));
  }
  return pools;
}

void Pool::release_unused_memory() const {
  struct Unused {
    std::shared_ptr<Pool> pool;
    std::vector<Segment> segments;
    bool passed = false;
  };
  std::vector<Unused> unused;
  for (std::shared_ptr<Pool>& pool : pools_of_this_memory()) {
    std::vector<Segment> segments = pool->detach_free_segments();
    unused.push_back({std::move(pool), std::move(segments)});
  }
  const Deadline deadline = deadline_in(kDrainSeconds);
  bool all_passed = true;
  for (Unused& of : unused) all_passed &= of.passed = of.pool->drain(deadline);
  // Freeing a CUDA device's memory waits for all of its work: not while a stream may wait for us.
  const bool waits = !pinned_ && device_.kind == DeviceKind::cuda;
  for (const Unused& of : unused) {
    if (!of.passed || (waits && !all_passed)) {
      of.pool->attach(of.segments);
    } else {
      for (const Segment& segment : of.segments) of.pool->deallocate(segment);
    }
  }
  if (!waits || !all_passed) return;
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  for (const auto& [bytes, data] : all.left(device_, false)) cuda_free(device_, data);
  all.left(device_, false).clear();
}

std::byte* Pool::try_take(std::int64_t wanted, std::int64_t bytes) {
  std::lock_guard lock(mutex_);
  auto part = find_free(wanted);
  if (part == parts_.end()) part = add_segment(wanted);
  if (part == parts_.end()) return nullptr;
  auto& [data, taken] = *part;
  free_.erase({taken.bytes, data});
  taken.free = false;
  if (const std::int64_t rest = taken.bytes - wanted; rest > 0) {
    parts_.emplace_hint(std::next(part), data + wanted, Part{rest, taken.segment, true});
    free_.emplace(rest, data + wanted);
    taken.bytes = wanted;
  }
  ++use_.buffers;
  use_.current_bytes += bytes;
  use_.peak_bytes = std::max(use_.peak_bytes, use_.current_bytes);
  return data;
}

bool Pool::try_reserve(std::int64_t wanted) {
  std::lock_guard lock(mutex_);
  return find_free(wanted) != parts_.end() || add_segment(wanted) != parts_.end();
}

void Pool::reserve(std::int64_t bytes) {
  const std::int64_t wanted = rounded_up(bytes, kAlignment);
  if (wanted == 0 || try_reserve(wanted)) return;
  release_unused_memory();
  if (!try_reserve(wanted)) refuse(bytes);
}

void Pool::refuse(std::int64_t bytes) const {
  std::shared_ptr<StreamImpl>
      stream;  // its end, should this be the last to hold it, takes the lock
  {
    std::lock_guard lock(mutex_);
    stream = stream_.lock();
  }
  const std::string name = stream ? concat(" of stream '", stream->name, "'") : "";
  const MemoryUse used = use();
  const std::string purpose = purpose_text(), remedy = purpose_remedy();
  fail(ExitCode::memory, "out of ", pinned_ ? "pinned host " : "", "memory on ", to_string(device_),
       ": ", size_text(bytes), " (", bytes, " bytes) asked for",
       purpose.empty() ? "" : " by " + purpose, ", beside ", size_text(used.current_bytes),
       " in use of the ", size_text(used.held_bytes), " that the pool", name, " holds",
       remedy.empty() ? "" : "; " + remedy);
}

std::byte* Pool::take(std::int64_t bytes) {
  const std::int64_t wanted = rounded_up(std::max<std::int64_t>(bytes, 1), kAlignment);
  if (std::byte* const data = try_take(wanted, bytes)) return data;
  // A task that allocates must not wait for streams: its own would have to pass it first.
  if (!on_stream_thread()) {
    release_unused_memory();
    if (std::byte* const data = try_take(wanted, bytes)) return data;
  }
  refuse(bytes);
}

void Pool::give_back(std::byte* data, std::int64_t bytes) {
  std::lock_guard lock(mutex_);
  auto part = parts_.find(data);
  const auto join = [&](Parts::iterator first, Parts::iterator second) {
    first->second.bytes += second->second.bytes;
    parts_.erase(second);
    return first;
  };
  const auto joins = [&](const Part& other) {
    return other.free && other.segment == part->second.segment;
  };
  if (const auto next = std::next(part); next != parts_.end() && joins(next->second)) {
    free_.erase({next->second.bytes, next->first});
    part = join(part, next);
  }
  if (part != parts_.begin()) {
    if (const auto before = std::prev(part); joins(before->second)) {
      free_.erase({before->second.bytes, before->first});
      part = join(before, part);
    }
  }
  part->second.free = true;
  free_.emplace(part->second.bytes, part->first);
  use_.current_bytes -= bytes;
}

MemoryUse Pool::use() const {
  std::lock_guard lock(mutex_);
  return use_;
}

void Pool::reset_peak() {
  std::lock_guard lock(mutex_);
  use_.peak_bytes = use_.current_bytes;
}

}  // namespace detail

std::int64_t system_allocations() { return detail::allocated_segments; }

}  // namespace longhaul::runtime

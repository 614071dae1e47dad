#include "runtime/pool_impl.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "runtime/error.h"
#include "runtime/stream_impl.h"

namespace longhaul::runtime {
namespace detail {
namespace {

constexpr std::int64_t kSegmentBytes = std::int64_t{2} << 20;  // CUDA's granularity; a huge page
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

}  // namespace

std::byte* Pool::allocate(std::int64_t bytes) const {
  ++allocated_segments;
  if (pinned_) return pinned_allocate(bytes);
  if (device_.kind == DeviceKind::cuda) return cuda_allocate(device_, bytes);
  return static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<std::size_t>(bytes)));
}

void Pool::deallocate(std::byte* data) const {
  if (pinned_) {
    pinned_free(data);
  } else if (device_.kind == DeviceKind::cuda) {
    cuda_free(device_, data);
  } else {
    std::free(data);
  }
}

Pool::~Pool() {
  for (const auto& [data, part] : parts_) {
    if (part.segment == data) deallocate(data);
  }
}

Pool::Parts::iterator Pool::find_free(std::int64_t wanted) {
  const auto found = free_.lower_bound({wanted, nullptr});
  if (found == free_.end() || (!kSplits && found->first != wanted)) return parts_.end();
  return parts_.find(found->second);
}

Pool::Parts::iterator Pool::try_segment(std::int64_t bytes) {
  std::byte* const data = allocate(bytes);
  if (data == nullptr) return parts_.end();
  use_.held_bytes += bytes;
  free_.emplace(bytes, data);
  return parts_.emplace(data, Part{bytes, data, true}).first;
}

/// A free part that holds `wanted` in a new segment; end() where the system has no more.
Pool::Parts::iterator Pool::add_segment(std::int64_t wanted) {
  if (!kSplits) return try_segment(wanted);
  const std::int64_t least = rounded_up(wanted, kSegmentBytes),
                     grown = rounded_up(use_.held_bytes / 8, kSegmentBytes);
  auto part = try_segment(std::max(least, grown));
  if (part == parts_.end() && grown > least) part = try_segment(least);
  // cudaFree waits for the work that may still use a part that was given back; std::free and
  // cudaFreeHost do not.
  if (part == parts_.end() && device_.kind == DeviceKind::cuda && !pinned_) {
    release_free_segments();
    part = try_segment(least);
  }
  return part;
}

void Pool::release_free_segments() {
  for (auto part = parts_.begin(); part != parts_.end();) {
    const auto next = std::next(part);
    const bool whole = part->second.free && part->second.segment == part->first &&
                       (next == parts_.end() || next->second.segment != part->first);
    if (whole) {
      free_.erase({part->second.bytes, part->first});
      use_.held_bytes -= part->second.bytes;
      deallocate(part->first);
      parts_.erase(part);
    }
    part = next;
  }
}

std::byte* Pool::take(std::int64_t bytes) {
  const std::int64_t wanted = rounded_up(std::max<std::int64_t>(bytes, 1), kAlignment);
  std::lock_guard lock(mutex_);
  auto part = find_free(wanted);
  if (part == parts_.end()) part = add_segment(wanted);
  if (part == parts_.end()) {
    fail(ExitCode::memory, "out of ", pinned_ ? "pinned host " : "", "memory on ",
         to_string(device_), ": ", bytes, " bytes asked for, ", use_.current_bytes,
         " in use; reduce seq_len or micro_batch_size, or add ranks");
  }
  auto& [data, taken] = *part;
  free_.erase({taken.bytes, data});
  taken.free = false;
  if (const std::int64_t rest = taken.bytes - wanted; rest > 0) {
    parts_.emplace_hint(std::next(part), data + wanted, Part{rest, taken.segment, true});
    free_.emplace(rest, data + wanted);
    taken.bytes = wanted;
  }
  use_.current_bytes += bytes;
  use_.peak_bytes = std::max(use_.peak_bytes, use_.current_bytes);
  return data;
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

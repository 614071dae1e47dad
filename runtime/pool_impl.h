#pragma once
// Stream-ordered memory of one stream. Private to runtime/.
//
// The pool takes segments from the system and hands out parts of them: the smallest free part that
// holds a request is split, and a part that is given back joins its free neighbours. So sizes that
// change with every batch settle on a few segments, and a steady state asks the system for none.
// Segments grow with the pool, by an eighth and at most 1 GiB, so their number stays small.
//
// Nothing is refused while other pools hold memory that nobody uses: when the system has no more,
// all pools of the same kind of memory (a CUDA device's, or the host's) give back the segments
// without a live part, each after its stream has passed what may still use them.
//
// Giving CUDA memory back, a device's or pinned memory of the host, makes the driver wait for all
// work of the device, where a stream may be waiting for us. So what a pool leaves behind when it
// ends serves later ones; a device's is given back only before memory is refused, and pinned memory
// never.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "runtime/stream.h"

namespace longhaul::runtime::detail {

class StreamImpl;

class Pool {
 public:
  /// `pinned`: host memory that `device`, a CUDA device, copies from and to.
  static std::shared_ptr<Pool> make(Device device, bool pinned = false);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Aligned to kAlignment. Throws Error(memory).
  std::byte* take(std::int64_t bytes);
  void give_back(std::byte* data, std::int64_t bytes);
  MemoryUse use() const;
  void reset_peak();
  /// The stream whose work uses the memory; before this is said, nothing is given back.
  void serve(std::weak_ptr<StreamImpl> stream);
  /// Its stream has ended, with all of its work done.
  void end();
  /// What the next buffer of so many bytes needs is taken from the system now. Not from a task.
  /// Throws Error(memory).
  void reserve(std::int64_t bytes);

  static constexpr std::int64_t kAlignment = 256;

 private:
  struct Part {
    std::int64_t bytes = 0;
    std::byte* segment = nullptr;  // its first byte
    bool free = false;
  };
  using Parts = std::map<std::byte*, Part>;  // in address order

  struct Segment {
    std::byte* data = nullptr;
    std::int64_t bytes = 0;
  };

  Pool(Device device, bool pinned) : device_(device), pinned_(pinned) {}
  Parts::iterator find_free(std::int64_t wanted);
  Parts::iterator add_segment(std::int64_t wanted);
  Parts::iterator try_segment(std::int64_t bytes);
  bool try_reserve(std::int64_t wanted);
  /// `wanted` bytes, counted as `bytes`; null when neither the pool nor the system has them.
  std::byte* try_take(std::int64_t wanted, std::int64_t bytes);
  /// Takes the segments without a live part out of the pool, so that nobody gets them any more.
  std::vector<Segment> detach_free_segments();
  void attach(const std::vector<Segment>& segments);
  /// Waits until the stream has passed what it has been given so far; false when it has not.
  bool drain(Deadline deadline) const;
  std::vector<std::shared_ptr<Pool>> pools_of_this_memory() const;
  void release_unused_memory() const;
  /// At least so many bytes; no data where there are no more.
  Segment allocate(std::int64_t bytes) const;
  [[noreturn]] void refuse(std::int64_t bytes) const;
  /// Whether its memory is kept for later pools.
  bool keeps() const { return device_.kind == DeviceKind::cuda; }
  void deallocate(Segment segment) const;

  const Device device_;
  const bool pinned_;
  std::weak_ptr<StreamImpl> stream_;
  bool serves_ = false;  // stream_ has been said; it may have ended since
  bool ended_ = false;   // with all of its work done
  mutable std::mutex mutex_;
  Parts parts_;
  std::set<std::pair<std::int64_t, std::byte*>> free_;  // (bytes, data) of the free parts
  MemoryUse use_;
};

}  // namespace longhaul::runtime::detail

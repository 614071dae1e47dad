#pragma once
// Stream-ordered memory of one stream. Private to runtime/.
//
// The pool takes segments from the system and hands out parts of them: the smallest free part that
// holds a request is split, and a part that is given back joins its free neighbours. So sizes that
// change with every batch settle on a few segments, and a steady state asks the system for none.
// Segments grow with the pool, by an eighth, so their number is logarithmic.

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "runtime/stream.h"

namespace longhaul::runtime::detail {

class Pool {
 public:
  /// `pinned`: host memory that `device`, a CUDA device, copies from and to.
  explicit Pool(Device device, bool pinned = false) : device_(device), pinned_(pinned) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Aligned to kAlignment. Throws Error(memory).
  std::byte* take(std::int64_t bytes);
  void give_back(std::byte* data, std::int64_t bytes);
  MemoryUse use() const;
  void reset_peak();

  static constexpr std::int64_t kAlignment = 256;

 private:
  struct Part {
    std::int64_t bytes = 0;
    std::byte* segment = nullptr;  // its first byte
    bool free = false;
  };
  using Parts = std::map<std::byte*, Part>;  // in address order

  Parts::iterator find_free(std::int64_t wanted);
  Parts::iterator add_segment(std::int64_t wanted);
  Parts::iterator try_segment(std::int64_t bytes);
  void release_free_segments();
  std::byte* allocate(std::int64_t bytes) const;
  void deallocate(std::byte* data) const;

  Device device_;
  bool pinned_;
  mutable std::mutex mutex_;
  Parts parts_;
  std::set<std::pair<std::int64_t, std::byte*>> free_;  // (bytes, data) of the free parts
  MemoryUse use_;
};

}  // namespace longhaul::runtime::detail

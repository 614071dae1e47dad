#pragma once
// Memory that will be used soon, brought into the second cache a few lines at a time between the
// tiles of products: the rows of a chunk come from memory while the chunk before it is computed.

#include <array>
#include <cstdint>

#include "attention/head_rows_cpu.h"

namespace longhaul::attention {

class Ahead {
 public:
  void clear() { count_ = at_ = 0; }
  void add(const HeadRows& rows) {
    const std::int64_t size = rows.bf16 ? 2 : 4;
    add(rows.data, rows.count, rows.stride * size, rows.dim * size);
  }
  /// Rows of so many bytes, `stride` bytes apart. What finds no place is not brought.
  void add(const std::byte* data, std::int64_t rows, std::int64_t stride, std::int64_t bytes) {
    if (count_ < ranges_.size()) ranges_[count_++] = {data, rows, stride, bytes};
  }
  /// The next few rows. A hint alone: nothing is read.
  void step() {
    for (std::int64_t left = kBytes; left > 0 && at_ < count_;) {
      Range& range = ranges_[at_];
      if (range.rows == 0) {
        ++at_;
        continue;
      }
      for (std::int64_t byte = 0; byte < range.bytes; byte += kLine)
        __builtin_prefetch(range.data + byte, 0, 2);
      left -= range.bytes;
      range.data += range.stride;
      --range.rows;
    }
  }

 private:
  static constexpr std::int64_t kLine = 64;
  static constexpr std::int64_t kBytes = 24 * kLine;  // of a step
  struct Range {
    const std::byte* data;
    std::int64_t rows, stride, bytes;
  };
  std::array<Range, 12> ranges_{};
  std::size_t count_ = 0, at_ = 0;
};

inline thread_local Ahead* g_ahead = nullptr;
}  // namespace longhaul::attention

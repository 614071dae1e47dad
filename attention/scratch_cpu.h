#pragma once
// Carves 64-byte aligned arrays out of one block of scratch. Without a block it only counts.

#include <cstddef>
#include <cstdint>

namespace longhaul::attention {

class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(std::byte* data) : data_(data) {}
  /// Uninitialised; T needs no construction.
  template <class T>
  T* array(std::int64_t count) {
    const std::int64_t at = bytes_;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    return data_ == nullptr ? nullptr : reinterpret_cast<T*>(data_ + at);
  }
  float* floats(std::int64_t count) { return array<float>(count); }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// What carve(Scratch&) takes.
template <class Carve>
std::int64_t carved_bytes(const Carve& carve) {
  Scratch counting;
  carve(counting);
  return counting.bytes();
}

}  // namespace longhaul::attention

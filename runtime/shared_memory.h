#pragma once
// Memory of this process that other processes of its host read where it lies.
//
// An arena is a wide range of addresses over a file without a name (memfd_create), so nothing of it
// outlives the process and its readers, however they end. As in other memory, only what is touched
// takes pages, and what is given back returns them. A reader maps the whole range once: a place in
// an arena is an offset, and what is allocated later is read without another call.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

namespace longhaul::runtime {

/// How another process of the same host, user and PID namespace finds an arena.
struct ArenaAddress {
  std::int64_t process = 0, file = -1;  ///< its process and the descriptor there
  std::int64_t bytes = 0;               ///< of addresses
  std::uint64_t token = 0;              ///< what stands at offset 0
};

namespace detail {
/// All of a file's bytes, mapped shared.
class ArenaMapping {
 public:
  /// Throws std::system_error.
  ArenaMapping(int file, std::int64_t bytes, bool writable);
  ~ArenaMapping();
  ArenaMapping(const ArenaMapping&) = delete;
  ArenaMapping& operator=(const ArenaMapping&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  /// None where it does not lie in here.
  std::optional<std::int64_t> offset_of(const std::byte* data) const;
  /// Throws Error(internal) outside.
  std::byte* at(std::int64_t offset) const;

 private:
  std::byte* reserved_ = nullptr;  // with what aligns data_ to a huge page
  std::byte* data_ = nullptr;
  const std::int64_t bytes_;
};
}  // namespace detail

/// Thread-safe.
class SharedArena {
 public:
  /// So that parts which come and go find a place.
  static constexpr std::int64_t kAddressesPerByte = 4;
  /// Holds up to `most_bytes` at a time. Pages are taken with a part and not when they are touched
  /// where the kernel promises none that it does not have, or `commits`. Throws Error(memory) where
  /// the system refuses it.
  explicit SharedArena(std::int64_t most_bytes, bool commits = false);
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

  ArenaAddress address() const;
  /// Aligned to a page; null where there is no more.
  std::byte* allocate(std::int64_t bytes);
  /// What allocate() of so many bytes gave.
  void free(std::byte* data, std::int64_t bytes);
  std::optional<std::int64_t> offset_of(const std::byte* data) const {
    return mapping_->offset_of(data);
  }
  const std::byte* at(std::int64_t offset) const { return mapping_->at(offset); }

 private:
  const std::int64_t most_bytes_;
  const bool commits_;
  std::uint64_t token_ = 0;
  int file_ = -1;
  std::unique_ptr<detail::ArenaMapping> mapping_;
  std::mutex mutex_;
  std::map<std::int64_t, std::int64_t> free_;  // ranges by offset: bytes; no two adjoin
  std::int64_t held_bytes_ = 0;
};

/// Another process's arena, to be read. Thread-safe.
class PeerArena {
 public:
  /// Throws Error(io) where it cannot be mapped, or what is mapped is not that arena.
  explicit PeerArena(const ArenaAddress& address);
  std::optional<std::int64_t> offset_of(const std::byte* data) const {
    return mapping_->offset_of(data);
  }
  const std::byte* at(std::int64_t offset) const { return mapping_->at(offset); }

 private:
  std::unique_ptr<const detail::ArenaMapping> mapping_;
};

/// From now on the pools of this process's CPU streams take their memory of the arena. Once a
/// process, and for good.
void take_stream_memory_of(std::unique_ptr<SharedArena> arena);
/// That arena; null where there is none.
SharedArena* stream_memory_arena();

}  // namespace longhaul::runtime

#pragma once
// A file in memory by mapping that survives the file's becoming shorter, which would otherwise end
// the process with SIGBUS.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "runtime/io/file.h"

namespace longhaul::runtime {

/// A whole file, read-only. When a page of it can no longer be read, because somebody has cut the
/// file or its disk fails, the mapping turns into zeros and is lost; whoever reads asks after
/// reading, and what was read counts only if require() returns. The first mapping installs a
/// handler for SIGBUS, which passes on what is no mapping's. Thread-safe.
class Mapping {
 public:
  /// Throws Error(io) when the file cannot be opened or mapped.
  explicit Mapping(const std::filesystem::path& path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Returns when no page has been lost; costs one load. Throws Error(data) for a file that is now
  /// shorter, Error(io) for one that cannot be read, naming it.
  void require() const;
  /// The same, and asks the file system whether the file is as long as it was: pages that are still
  /// in memory do not tell. Costs a system call.
  void require_whole() const;
  /// Whether somebody has written to the file since it was mapped, or since this last said so.
  /// Costs a system call.
  bool written() const;

 private:
  struct Entry;
  static Entry& claim(const std::byte* data, std::size_t size);

  FileHandle file_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  Entry* entry_ = nullptr;
  mutable std::atomic<std::int64_t> modified_ns_{0};  ///< the file's time, when last asked
};

}  // namespace longhaul::runtime

#pragma once
// Files and folders through POSIX, every return code checked: what durable writing and careful
// reading need. Throws: Error(io) naming the path and errno's text, unless a line says otherwise.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/io/hash.h"

namespace longhaul::runtime {

/// An open file descriptor. Move only; closes itself.
class FileHandle {
 public:
  /// Opens a regular file for reading; refuses symbolic links if `follow_links` is false.
  static FileHandle read(const std::filesystem::path& path, bool follow_links = true);
  /// Creates a file that must not exist yet.
  static FileHandle create(const std::filesystem::path& path);
  FileHandle(FileHandle&& other) noexcept;
  FileHandle& operator=(FileHandle&& other) noexcept;
  ~FileHandle();

  int descriptor() const { return descriptor_; }
  const std::filesystem::path& path() const { return path_; }
  std::int64_t size() const;
  /// Reads up to the buffer's size from the current place; returns the bytes read, 0 at the end.
  std::size_t read_some(std::span<std::byte> buffer) const;
  /// Fills the buffer from byte `offset` on, wherever the current place is; thread-safe. Throws
  /// Error(data) when the file ends before.
  void read_at(std::int64_t offset, std::span<std::byte> buffer) const;
  void write_all(std::span<const std::byte> bytes) const;
  /// Forces the contents to the device.
  void sync() const;
  /// Closes and reports what closing reports; the destructor cannot.
  void close();

 private:
  FileHandle(int descriptor, std::filesystem::path path);
  int descriptor_ = -1;
  std::filesystem::path path_;
};

/// The whole file; fails if it holds more than `limit_bytes`.
std::string read_file(const std::filesystem::path& path, std::int64_t limit_bytes,
                      bool follow_links = true);
/// A new file with these contents, forced to the device.
void write_new_file(const std::filesystem::path& path, std::string_view contents);
/// Forces a folder's entries to the device.
void sync_folder(const std::filesystem::path& folder);

struct FileDigest {
  std::int64_t bytes = 0;
  std::string xxh3_128;
  bool operator==(const FileDigest&) const = default;
};
/// Size and XXH3-128 of a file; never follows a symbolic link at its end.
FileDigest digest_file(const std::filesystem::path& path);

/// digest_file() in steps, for whoever reads the same file in another way and wants its pages once.
class FileDigester {
 public:
  explicit FileDigester(const std::filesystem::path& path);
  /// Reads on until `bytes` of the file have been read, or a little more, or all of it.
  void advance_to(std::int64_t bytes);
  /// Reads the rest.
  FileDigest finish();

 private:
  FileHandle file_;
  Digest digest_;
  std::vector<std::byte> buffer_;
  std::int64_t bytes_ = 0;
};
/// Forces a written file to the device, and asks the kernel to forget its pages, so that the next
/// read comes from the device where it can.
void sync_and_drop_cache(const std::filesystem::path& path);

/// A name part that no other process and no earlier call uses: time, process id and a counter.
std::string unique_suffix();

/// Runs its action when destroyed, unless dismissed. The action must not throw.
class Cleanup {
 public:
  explicit Cleanup(std::function<void()> action) : action_(std::move(action)) {}
  ~Cleanup() {
    if (action_) action_();
  }
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  void dismiss() { action_ = nullptr; }

 private:
  std::function<void()> action_;
};

}  // namespace longhaul::runtime

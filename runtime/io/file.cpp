#include "runtime/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <limits>
#include <random>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

[[noreturn]] void fail_errno(const std::filesystem::path& path, const char* what, int code) {
  if (code == ENOSPC || code == EDQUOT)
    fail(ExitCode::io, "no space left for ", path.string(), ": ", what, ": ",
         std::generic_category().message(code));
  fail(ExitCode::io, path.string(), ": ", what, ": ", std::generic_category().message(code));
}

int open_retrying(const std::filesystem::path& path, int flags, const char* what) {
  for (;;) {
    const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    if (descriptor >= 0) return descriptor;
    if (errno != EINTR) fail_errno(path, what, errno);
  }
}

}  // namespace

FileHandle::FileHandle(int descriptor, std::filesystem::path path)
    : descriptor_(descriptor), path_(std::move(path)) {}
FileHandle::FileHandle(FileHandle&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}
FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}
FileHandle::~FileHandle() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

FileHandle FileHandle::read(const std::filesystem::path& path, bool follow_links) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer; it is refused below.
  const int flags = O_RDONLY | O_NONBLOCK | (follow_links ? 0 : O_NOFOLLOW);
  FileHandle file(open_retrying(path, flags, "cannot open"), path);
  struct stat status {};
  if (::fstat(file.descriptor_, &status) != 0) fail_errno(path, "cannot stat", errno);
  if (!S_ISREG(status.st_mode)) fail(ExitCode::io, path.string(), ": not a regular file");
  return file;
}

FileHandle FileHandle::create(const std::filesystem::path& path) {
  return {open_retrying(path, O_WRONLY | O_CREAT | O_EXCL, "cannot create"), path};
}

std::int64_t FileHandle::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_errno(path_, "cannot stat", errno);
  return status.st_size;
}

std::size_t FileHandle::read_some(std::span<std::byte> buffer) const {
  for (;;) {
    const ssize_t got = ::read(descriptor_, buffer.data(), buffer.size());
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) fail_errno(path_, "cannot read", errno);
  }
}

void FileHandle::read_at(std::int64_t offset, std::span<std::byte> buffer) const {
  while (!buffer.empty()) {
    const ssize_t got = ::pread(descriptor_, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path_, "cannot read", errno);
    if (got == 0) {
      fail(ExitCode::data, path_.string(), ": ends at byte ", offset,
           ", before what was to be read;", " a file that is being read must not be written to");
    }
    buffer = buffer.subspan(static_cast<std::size_t>(got));
    offset += got;
  }
}

void FileHandle::write_all(std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = ::write(descriptor_, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_errno(path_, "cannot write", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

void FileHandle::sync() const {
  while (::fsync(descriptor_) != 0) {
    if (errno != EINTR) fail_errno(path_, "cannot sync", errno);
  }
}

void FileHandle::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  if (descriptor >= 0 && ::close(descriptor) != 0) fail_errno(path_, "cannot close", errno);
}

std::string read_file(const std::filesystem::path& path, std::int64_t limit_bytes,
                      bool follow_links) {
  const FileHandle file = FileHandle::read(path, follow_links);
  const std::int64_t size = file.size();
  if (size > limit_bytes) {
    fail(ExitCode::io, path.string(), ": holds ", size, " bytes; at most ", limit_bytes,
         " are read");
  }
  std::string contents(static_cast<std::size_t>(size), '\0');
  std::size_t have = 0;
  while (have < contents.size()) {
    const auto rest = std::as_writable_bytes(std::span(contents)).subspan(have);
    const std::size_t got = file.read_some(rest);
    if (got == 0) fail(ExitCode::io, path.string(), ": became shorter while it was read");
    have += got;
  }
  return contents;
}

void write_new_file(const std::filesystem::path& path, std::string_view contents) {
  FileHandle file = FileHandle::create(path);
  file.write_all(std::as_bytes(std::span(contents)));
  file.sync();
  file.close();
}

void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = open_retrying(folder, O_RDONLY | O_DIRECTORY, "cannot open");
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  // Some network filesystems have no fsync of a folder and say EINVAL; their renames are
  // synchronous.
  if (result != 0 && code != EINVAL) fail_errno(folder, "cannot sync", code);
}

FileDigester::FileDigester(const std::filesystem::path& path)
    : file_(FileHandle::read(path, false)), buffer_(kPieceBytes) {}

void FileDigester::advance_to(std::int64_t bytes) {
  while (bytes_ < bytes) {
    const std::size_t got = file_.read_some(buffer_);
    if (got == 0) return;
    digest_.update(std::span(buffer_).first(got));
    bytes_ += static_cast<std::int64_t>(got);
  }
}

FileDigest FileDigester::finish() {
  advance_to(std::numeric_limits<std::int64_t>::max());
  return {bytes_, digest_.hex()};
}

FileDigest digest_file(const std::filesystem::path& path) { return FileDigester(path).finish(); }

void sync_and_drop_cache(const std::filesystem::path& path) {
  const FileHandle file = FileHandle::read(path, false);
  file.sync();
  // Advice only: a filesystem that keeps its pages costs nothing but the strength of the next
  // check.
  static_cast<void>(::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED));
}

std::string unique_suffix() {
  static std::atomic<int> calls{0};
  // Processes of other hosts and containers share folders, and may share time and number.
  static const unsigned process = std::random_device{}();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return concat(std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), "-", ::getpid(),
                "-", process, "-", calls++);
}

}  // namespace longhaul::runtime

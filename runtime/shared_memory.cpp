#include "runtime/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <system_error>

#include "runtime/error.h"
#include "runtime/size_text.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace longhaul::runtime {
namespace {

constexpr std::int64_t kPageBytes = 4096;
constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;
// Before the parts, and as wide as what keeps them aligned as the addresses are: the token.
constexpr std::int64_t kHeadBytes = kHugePageBytes;
// Under AddressSanitizer a page behind each part shows what runs over its end.
#ifdef __SANITIZE_ADDRESS__
constexpr std::int64_t kGuardBytes = kPageBytes;
void forbid(const std::byte* data, std::int64_t bytes) {
  __asan_poison_memory_region(data, static_cast<std::size_t>(bytes));
}
void permit(const std::byte* data, std::int64_t bytes) {
  __asan_unpoison_memory_region(data, static_cast<std::size_t>(bytes));
}
#else
constexpr std::int64_t kGuardBytes = 0;
void forbid(const std::byte*, std::int64_t) {}
void permit(const std::byte*, std::int64_t) {}
#endif

std::int64_t rounded_up(std::int64_t bytes, std::int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

/// Addresses that a part of so many bytes takes.
std::int64_t range_of(std::int64_t bytes) { return rounded_up(bytes, kPageBytes) + kGuardBytes; }

[[noreturn]] void fail_system(const char* call) {
  throw std::system_error(errno, std::generic_category(), call);
}

/// Whether the kernel promises no page that it does not have (vm.overcommit_memory = 2).
bool strict_accounting() {
  int mode = 0;
  return (std::ifstream("/proc/sys/vm/overcommit_memory") >> mode) && mode == 2;
}

/// A file without a name, of so many bytes that take no memory yet.
int make_file(std::int64_t bytes) {
  // Growing a file beyond this limit is a signal that ends the process.
  rlimit limit = {};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0) fail_system("getrlimit");
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < static_cast<rlim_t>(bytes)) {
    fail(ExitCode::memory, "files are limited to ",
         size_text(static_cast<std::int64_t>(limit.rlim_cur)), " (ulimit -f)");
  }
  const int file = ::memfd_create("longhaul", MFD_CLOEXEC);
  if (file < 0) fail_system("memfd_create");
  if (::ftruncate(file, bytes) != 0) {
    const int error = errno;
    ::close(file);
    errno = error;
    fail_system("ftruncate");
  }
  return file;
}

std::atomic<SharedArena*> stream_arena{nullptr};  // never destroyed, as pools are not

}  // namespace

detail::ArenaMapping::ArenaMapping(int file, std::int64_t bytes, bool writable) : bytes_(bytes) {
  const auto length = static_cast<std::size_t>(bytes);
  void* const reserved = ::mmap(nullptr, length + kHugePageBytes, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail_system("mmap");
  reserved_ = static_cast<std::byte*>(reserved);
  const auto place = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(reserved));
  data_ = reserved_ + (rounded_up(place, kHugePageBytes) - place);
  if (::mmap(data_, length, writable ? PROT_READ | PROT_WRITE : PROT_READ,
             MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, 0) == MAP_FAILED) {
    const int error = errno;
    ::munmap(reserved_, length + kHugePageBytes);
    errno = error;
    fail_system("mmap");
  }
  // Hints: huge pages where the system has them for shared memory, and a core file without
  // terabytes of addresses.
  static_cast<void>(::madvise(data_, length, MADV_HUGEPAGE));
  static_cast<void>(::madvise(data_, length, MADV_DONTDUMP));
}

detail::ArenaMapping::~ArenaMapping() {
  ::munmap(reserved_, static_cast<std::size_t>(bytes_ + kHugePageBytes));
}

std::optional<std::int64_t> detail::ArenaMapping::offset_of(const std::byte* data) const {
  const auto offset = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) -
                                                reinterpret_cast<std::uintptr_t>(data_));
  return 0 <= offset && offset < bytes_ ? std::optional(offset) : std::nullopt;
}

std::byte* detail::ArenaMapping::at(std::int64_t offset) const {
  LONGHAUL_CHECK(0 <= offset && offset < bytes_, "offset ", offset, " of shared memory of ", bytes_,
                 " bytes");
  return data_ + offset;
}

SharedArena::SharedArena(std::int64_t most_bytes, bool commits)
    : most_bytes_(most_bytes), commits_(commits || strict_accounting()) {
  LONGHAUL_CHECK(most_bytes > 0, "shared memory of ", most_bytes, " bytes");
  const std::int64_t bytes =
      kHeadBytes + rounded_up(most_bytes, kHugePageBytes) * kAddressesPerByte;
  std::random_device random;
  token_ = std::uint64_t{random()} << 32 | random();
  try {
    file_ = make_file(bytes);
    if (const int error = ::posix_fallocate(file_, 0, kPageBytes); error != 0) {
      errno = error;
      fail_system("posix_fallocate");
    }
    mapping_ = std::make_unique<detail::ArenaMapping>(file_, bytes, true);
    std::memcpy(mapping_->data(), &token_, sizeof(token_));
  } catch (const std::exception& error) {
    if (file_ >= 0) ::close(file_);
    fail(ExitCode::memory, "the system refuses ", size_text(bytes),
         " of addresses of shared memory: ", error.what());
  }
  free_.emplace(kHeadBytes, bytes - kHeadBytes);
}

SharedArena::~SharedArena() {
  for (const auto& [offset, bytes] : free_) permit(mapping_->data() + offset, bytes);
  ::close(file_);
}

ArenaAddress SharedArena::address() const { return {::getpid(), file_, mapping_->bytes(), token_}; }

std::byte* SharedArena::allocate(std::int64_t bytes) {
  if (bytes <= 0 || bytes > most_bytes_) return nullptr;
  std::lock_guard lock(mutex_);
  const std::int64_t wanted = range_of(bytes);
  if (held_bytes_ + wanted > most_bytes_) return nullptr;
  const auto found =
      std::ranges::find_if(free_, [&](const auto& range) { return range.second >= wanted; });
  if (found == free_.end()) return nullptr;
  const auto [offset, room] = *found;
  // Where pages are not promised ahead, touching one that is lacking would end the process with
  // SIGBUS.
  if (commits_) {
    int error = EINTR;
    while (error == EINTR) error = ::posix_fallocate(file_, offset, wanted);
    if (error != 0) return nullptr;
  }
  free_.erase(found);
  if (room > wanted) free_.emplace(offset + wanted, room - wanted);
  held_bytes_ += wanted;
  std::byte* const data = mapping_->data() + offset;
  permit(data, bytes);
  forbid(data + bytes, wanted - bytes);
  return data;
}

void SharedArena::free(std::byte* data, std::int64_t bytes) {
  const std::optional<std::int64_t> offset = offset_of(data);
  LONGHAUL_CHECK(offset, "memory given back to an arena that it is not of");
  const std::int64_t given = range_of(bytes);
  std::lock_guard lock(mutex_);
  if (::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, *offset, given) != 0)
    fail(ExitCode::internal, "fallocate cannot give memory back: ", std::strerror(errno));
  forbid(data, given);
  held_bytes_ -= given;
  const auto next = free_.lower_bound(*offset);
  auto range = free_.emplace_hint(next, *offset, given);
  if (next != free_.end() && next->first == *offset + given) {
    range->second += next->second;
    free_.erase(next);
  }
  if (range == free_.begin()) return;
  const auto before = std::prev(range);
  if (before->first + before->second != range->first) return;
  before->second += range->second;
  free_.erase(range);
}

PeerArena::PeerArena(const ArenaAddress& address) {
  const std::string path = concat("/proc/", address.process, "/fd/", address.file);
  int file = -1;
  try {
    // In another PID namespace the path is another file's: whatever it is, opening must not wait.
    file = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file < 0) fail_system("open");
    struct stat status = {};
    if (::fstat(file, &status) != 0) fail_system("fstat");
    if (!S_ISREG(status.st_mode) || status.st_size != address.bytes)
      fail(ExitCode::io, "it is another file: the processes are in PID namespaces of their own");
    auto mapping = std::make_unique<detail::ArenaMapping>(file, address.bytes, false);
    std::uint64_t token = 0;
    std::memcpy(&token, mapping->data(), sizeof(token));
    if (token != address.token) fail(ExitCode::io, "another process's token stands in it");
    mapping_ = std::move(mapping);
    ::close(file);
  } catch (const std::exception& error) {
    if (file >= 0) ::close(file);
    fail(ExitCode::io, "cannot map another process's memory, ", path, ": ", error.what());
  }
}

void take_stream_memory_of(std::unique_ptr<SharedArena> arena) {
  SharedArena* none = nullptr;
  LONGHAUL_CHECK(stream_arena.compare_exchange_strong(none, arena.get()),
                 "this process shares the memory of its streams already");
  static_cast<void>(arena.release());
}

SharedArena* stream_memory_arena() { return stream_arena; }

}  // namespace longhaul::runtime

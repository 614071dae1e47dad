#include "runtime/io/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <system_error>

#include "runtime/error.h"

namespace longhaul::runtime {

/// What the handler knows of a mapping. Entries are used again and never freed: the handler may
/// walk them at any time.
struct Mapping::Entry {
  std::atomic<std::uintptr_t> begin{0}, end{0};  ///< end 0: free
  std::atomic<bool> lost{false};
  Entry* next = nullptr;

  static std::atomic<Entry*> first;
  static struct sigaction earlier;  ///< the handler before ours
  static void install();
  static void on_fault(int signal, siginfo_t* info, void* context);
};

std::atomic<Mapping::Entry*> Mapping::Entry::first{nullptr};
struct sigaction Mapping::Entry::earlier = {};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free &&
                  std::atomic<bool>::is_always_lock_free,
              "only lock-free atomics may be used in a handler");

/// Zeros take the mapping's place, so that the access that failed is repeated and succeeds.
void Mapping::Entry::on_fault(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Entry* entry = first; entry != nullptr; entry = entry->next) {
    const std::uintptr_t begin = entry->begin, end = entry->end;
    if (at < begin || at >= end) continue;
    entry->lost = true;
    if (::mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
      errno = error;
      return;
    }
  }
  if ((earlier.sa_flags & SA_SIGINFO) != 0 && earlier.sa_sigaction != nullptr) {
    earlier.sa_sigaction(signal, info, context);
  } else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
    earlier.sa_handler(signal);
  } else {  // the access is repeated and ends the process as if we had not been here
    ::sigaction(signal, &earlier, nullptr);
  }
  errno = error;
}

void Mapping::Entry::install() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (::sigaction(SIGBUS, &action, &earlier) != 0) {
    fail(ExitCode::internal, "cannot handle SIGBUS: ", std::generic_category().message(errno));
  }
}

Mapping::Entry& Mapping::claim(const std::byte* data, std::size_t size) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Entry* entry = Entry::first;
  while (entry != nullptr && entry->end != 0) entry = entry->next;
  if (entry == nullptr) {
    entry = new Entry;
    entry->next = Entry::first;
    Entry::first = entry;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  entry->lost = false;
  entry->begin = begin;
  entry->end = begin + size;
  return *entry;
}

namespace {

std::int64_t modified_ns(const FileHandle& file) {
  struct stat status {};
  if (::fstat(file.descriptor(), &status) != 0) {
    fail(ExitCode::io, file.path().string(),
         ": cannot stat: ", std::generic_category().message(errno));
  }
  return status.st_mtim.tv_sec * std::int64_t{1'000'000'000} + status.st_mtim.tv_nsec;
}

}  // namespace

Mapping::Mapping(const std::filesystem::path& path)
    : file_(FileHandle::read(path)), size_(static_cast<std::size_t>(file_.size())) {
  static std::once_flag installed;
  std::call_once(installed, Entry::install);
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_.descriptor(), 0);
  if (data == MAP_FAILED) {
    fail(ExitCode::io, path.string(), ": cannot map ", size_,
         " bytes: ", std::generic_category().message(errno));
  }
  data_ = static_cast<const std::byte*>(data);
  entry_ = &claim(data_, size_);
  modified_ns_ = modified_ns(file_);
}

Mapping::~Mapping() {
  entry_->end = 0;
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void Mapping::require() const {
  if (entry_->lost) require_whole();
}

bool Mapping::written() const {
  const std::int64_t now = modified_ns(file_);
  return modified_ns_.exchange(now) != now;
}

void Mapping::require_whole() const {
  const auto size = static_cast<std::size_t>(file_.size());
  if (size < size_) {
    fail(ExitCode::data, file_.path().string(), ": became shorter while it was in use: it had ",
         size_, " bytes and now has ", size,
         "; a file that is being read must not be written to. Make it anew and start again");
  }
  if (entry_->lost)
    fail(ExitCode::io, file_.path().string(), ": cannot be read any more: its device failed");
}

}  // namespace longhaul::runtime

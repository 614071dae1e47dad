#include "runtime/flight.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <new>

#include "runtime/error.h"
#include "runtime/flight_impl.h"
#include "runtime/threads.h"

namespace longhaul::runtime {
namespace {

using detail::FlightRecord;
using detail::FlightSlot;
using detail::SlotState;

constexpr auto kBeat = std::chrono::milliseconds(100);

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

FlightRecord* as_record(void* data) { return static_cast<FlightRecord*>(data); }

void* map_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0)
    fail(ExitCode::io, "cannot create flight record ", path, ": ", std::strerror(errno));
  // Reserved now: a full disk would otherwise show as SIGBUS at a later write.
  const int reserved = ::posix_fallocate(file, 0, sizeof(FlightRecord));
  void* data = MAP_FAILED;
  int error = reserved;
  if (reserved == 0) {
    data = ::mmap(nullptr, sizeof(FlightRecord), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    error = errno;
  }
  ::close(file);
  if (data == MAP_FAILED)
    fail(ExitCode::io, "cannot map flight record ", path, ": ", std::strerror(error));
  return data;
}

}  // namespace

std::string flight_file(const std::string& folder, int rank) {
  return concat(folder, "/flight-", rank, ".bin");
}

FlightRecorder::FlightRecorder(const std::string& folder, int rank) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail(ExitCode::io, "cannot create folder ", folder, ": ", error.message());
  record_ = map_file(flight_file(folder, rank));
  FlightRecord* record = new (record_) FlightRecord{};
  record->rank = rank;
  record->process = static_cast<std::int32_t>(::getpid());
  char host[64] = {};
  if (::gethostname(host, sizeof(host) - 1) != 0) detail::put_text(host, "unknown host");
  detail::put_text(record->host, host);
  record->step = -1;
  record->tick_ns = now_ns();
  std::atomic_thread_fence(std::memory_order_release);
  record->magic = detail::kFlightMagic;
  heart_ = start_thread("the flight recorder", [this] { beat(); });
}

FlightRecorder::~FlightRecorder() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  closing_changed_.notify_one();
  heart_.join();
  as_record(record_)->ended = 1;
  ::munmap(record_, sizeof(FlightRecord));
}

void FlightRecorder::beat() {
  std::unique_lock lock(mutex_);
  FlightRecord* record = as_record(record_);
  while (!closing_changed_.wait_for(lock, kBeat, [&] { return closing_; })) {
    const std::int64_t now = now_ns();
    const std::int64_t gap = now - record->tick_ns.load(std::memory_order_relaxed);
    if (static_cast<double>(gap) > kStoppedAfterSeconds * 1e9) {
      record->gap_ns.store(gap, std::memory_order_relaxed);
      record->gap_end_ns.store(now, std::memory_order_relaxed);
    }
    record->tick_ns.store(now, std::memory_order_relaxed);
  }
}

void FlightRecorder::set_step(std::int64_t step) { as_record(record_)->step = step; }

void FlightRecorder::set_phase(std::string_view phase) {
  detail::put_text(as_record(record_)->phase, phase);
}

int FlightRecorder::begin(const FlightOperation& operation) {
  FlightRecord* record = as_record(record_);
  const unsigned first = next_slot_.fetch_add(1, std::memory_order_relaxed);
  for (unsigned i = 0; i < detail::kFlightSlots; ++i) {
    const unsigned index = (first + i) % detail::kFlightSlots;
    FlightSlot& slot = record->slots[index];
    SlotState state = slot.state.load(std::memory_order_relaxed);
    if (state == SlotState::active || state == SlotState::writing) continue;
    if (!slot.state.compare_exchange_strong(state, SlotState::writing, std::memory_order_acquire))
      continue;
    slot.peer = operation.peer;
    slot.sequence = operation.sequence;
    slot.begin_ns = now_ns();
    slot.end_ns = 0;
    detail::put_text(slot.name, operation.name);
    detail::put_text(slot.communicator, operation.communicator);
    slot.state.store(SlotState::active, std::memory_order_release);
    return static_cast<int>(index);
  }
  return -1;
}

void FlightRecorder::end(int slot) {
  if (slot < 0) return;
  FlightSlot& ended = as_record(record_)->slots[slot];
  ended.end_ns = now_ns();
  ended.state.store(SlotState::done, std::memory_order_release);
}

}  // namespace longhaul::runtime

#pragma once
// The layout of a flight record. Private to the recorder and its reader.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace longhaul::runtime::detail {

constexpr std::uint64_t kFlightMagic = 0x32746867696c466cULL;  // "lFlight2", little endian
constexpr int kFlightSlots = 16;

enum class SlotState : std::uint32_t { empty, writing, active, done };

/// Times are nanoseconds of the system clock, which processes share. Plain members of a slot belong
/// to whoever moved its state to `writing`.
struct FlightSlot {
  std::atomic<SlotState> state;
  std::int32_t peer;
  std::int64_t sequence;
  std::int64_t begin_ns;
  std::int64_t end_ns;
  char name[64];
  char communicator[32];
};

struct FlightRecord {
  std::uint64_t magic;
  std::int32_t rank;
  std::int32_t process;
  char host[64];
  std::atomic<std::int64_t> tick_ns;
  std::atomic<std::int64_t> gap_ns;      // the last long pause of the heartbeat,
  std::atomic<std::int64_t> gap_end_ns;  // and when it ended; 0: none
  std::atomic<std::int64_t> step;        // -1: none yet
  std::atomic<std::uint32_t> ended;
  char phase[32];
  FlightSlot slots[kFlightSlots];
};
static_assert(std::atomic<std::int64_t>::is_always_lock_free &&
                  std::atomic<SlotState>::is_always_lock_free,
              "records are shared between processes");

template <std::size_t N>
void put_text(char (&to)[N], std::string_view text) {
  const std::size_t length = text.size() < N - 1 ? text.size() : N - 1;
  std::memcpy(to, text.data(), length);
  std::memset(to + length, 0, N - length);
}

}  // namespace longhaul::runtime::detail

// Reading flight records: every byte of one may be damaged, or belong to another version of the
// program.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <vector>

#include "runtime/error.h"
#include "runtime/flight.h"
#include "runtime/flight_impl.h"

namespace longhaul::runtime {
namespace {

using detail::FlightRecord;
using detail::FlightSlot;
using detail::SlotState;

constexpr double kRecentSeconds = 5;

struct Operation {
  std::string name, communicator;
  int peer = -1;
  std::int64_t sequence = 0;
  double age_seconds = 0;  // since it began, or ended
};

struct RankState {
  int rank = 0;
  std::string unreadable;  // why, when it is
  std::string where;       // host and process
  bool ended = false;
  double tick_age_seconds = 0;
  double gap_seconds = 0;
  double gap_end_age_seconds = 1e9;
  std::int64_t step = -1;
  std::string phase;
  std::vector<Operation> active;  // oldest first
  std::vector<Operation> done;    // latest first
};

template <std::size_t N>
std::string text_of(const char (&from)[N]) {
  std::string text;
  for (std::size_t i = 0; i < N && from[i] != 0; ++i) {
    text += std::isprint(static_cast<unsigned char>(from[i])) ? from[i] : '?';
  }
  return text;
}

template <class T>
T get(const std::vector<char>& bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

double seconds_between(std::int64_t begin_ns, std::int64_t end_ns) {
  return (static_cast<double>(end_ns) - static_cast<double>(begin_ns)) * 1e-9;
}

void read_slots(const std::vector<char>& bytes, std::int64_t now_ns, RankState& state) {
  for (int i = 0; i < detail::kFlightSlots; ++i) {
    const std::size_t at =
        offsetof(FlightRecord, slots) + static_cast<std::size_t>(i) * sizeof(FlightSlot);
    char name[64], communicator[32];
    std::memcpy(name, bytes.data() + at + offsetof(FlightSlot, name), sizeof(name));
    std::memcpy(communicator, bytes.data() + at + offsetof(FlightSlot, communicator),
                sizeof(communicator));
    Operation operation{text_of(name), text_of(communicator),
                        get<std::int32_t>(bytes, at + offsetof(FlightSlot, peer)),
                        get<std::int64_t>(bytes, at + offsetof(FlightSlot, sequence)), 0};
    const auto slot_state = get<std::uint32_t>(bytes, at + offsetof(FlightSlot, state));
    if (slot_state == static_cast<std::uint32_t>(SlotState::active)) {
      operation.age_seconds =
          seconds_between(get<std::int64_t>(bytes, at + offsetof(FlightSlot, begin_ns)), now_ns);
      state.active.push_back(operation);
    } else if (slot_state == static_cast<std::uint32_t>(SlotState::done)) {
      operation.age_seconds =
          seconds_between(get<std::int64_t>(bytes, at + offsetof(FlightSlot, end_ns)), now_ns);
      state.done.push_back(operation);
    }
  }
  std::ranges::sort(state.active, std::greater{}, &Operation::age_seconds);
  std::ranges::sort(state.done, {}, &Operation::age_seconds);
}

RankState read_rank(const std::string& folder, int rank, std::int64_t now_ns) {
  RankState state;
  state.rank = rank;
  const std::string path = flight_file(folder, rank);
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes(sizeof(FlightRecord));
  if (!file) {
    state.unreadable = path + " cannot be opened";
    return state;
  }
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (file.gcount() != static_cast<std::streamsize>(bytes.size())) {
    state.unreadable = concat(path, " has only ", file.gcount(), " of ", bytes.size(), " bytes");
    return state;
  }
  if (get<std::uint64_t>(bytes, offsetof(FlightRecord, magic)) != detail::kFlightMagic ||
      get<std::int32_t>(bytes, offsetof(FlightRecord, rank)) != rank) {
    state.unreadable = path + " is not this rank's flight record";
    return state;
  }
  char host[64], phase[32];
  std::memcpy(host, bytes.data() + offsetof(FlightRecord, host), sizeof(host));
  std::memcpy(phase, bytes.data() + offsetof(FlightRecord, phase), sizeof(phase));
  state.where =
      concat(text_of(host), ", pid ", get<std::int32_t>(bytes, offsetof(FlightRecord, process)));
  state.ended = get<std::uint32_t>(bytes, offsetof(FlightRecord, ended)) == 1;
  state.tick_age_seconds =
      seconds_between(get<std::int64_t>(bytes, offsetof(FlightRecord, tick_ns)), now_ns);
  state.gap_seconds =
      static_cast<double>(get<std::int64_t>(bytes, offsetof(FlightRecord, gap_ns))) * 1e-9;
  state.gap_end_age_seconds =
      seconds_between(get<std::int64_t>(bytes, offsetof(FlightRecord, gap_end_ns)), now_ns);
  state.step = get<std::int64_t>(bytes, offsetof(FlightRecord, step));
  state.phase = text_of(phase);
  read_slots(bytes, now_ns, state);
  return state;
}

void describe(std::ostringstream& out, const RankState& state) {
  out << "step ";
  state.step < 0 ? out << "none" : out << state.step;
  if (!state.phase.empty()) out << ", " << state.phase;
  const auto tell = [&](const Operation& operation) {
    out << "'" << operation.name << "' (operation " << operation.sequence << " of communicator '"
        << operation.communicator << "'";
    if (operation.peer >= 0) out << ", with rank " << operation.peer;
    out << ", ";
  };
  for (const Operation& operation : state.active) {
    out << ", in ";
    tell(operation);
    out << "for " << operation.age_seconds << " s)";
  }
  if (state.active.empty()) {
    out << ", in no operation";
    if (!state.done.empty()) {
      out << "; its last was ";
      tell(state.done.front());
      out << "ended " << state.done.front().age_seconds << " s ago)";
    }
  }
  out << '\n';
}

}  // namespace

std::string hang_report(const std::string& folder, int ranks,
                        std::chrono::system_clock::time_point now) {
  const std::int64_t now_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count();
  std::vector<RankState> stopped, waiting, computing, ended, unreadable;
  for (int rank = 0; rank < ranks; ++rank) {
    RankState state = read_rank(folder, rank, now_ns);
    // The clocks of nodes differ, and a damaged tick may lie in the future: neither is a heartbeat.
    const bool fresh = std::abs(state.tick_age_seconds) < kStoppedAfterSeconds;
    const bool paused = std::abs(state.gap_end_age_seconds) < kRecentSeconds;
    auto& kind = !state.unreadable.empty() ? unreadable
                 : state.ended             ? ended
                 : !fresh || paused        ? stopped
                 : !state.active.empty()   ? waiting
                                           : computing;
    kind.push_back(std::move(state));
  }
  std::ostringstream out;
  out << std::fixed << std::setprecision(1);
  if (stopped.empty()) out << "no rank has stopped: every readable heartbeat is fresh\n";
  for (const RankState& state : stopped) {
    out << "rank " << state.rank << " (" << state.where << ") ";
    if (std::abs(state.tick_age_seconds) >= kStoppedAfterSeconds) {
      out << "stopped: last heartbeat " << state.tick_age_seconds << " s ago; ";
    } else {
      out << "was stopped for " << state.gap_seconds << " s until " << state.gap_end_age_seconds
          << " s ago; ";
    }
    describe(out, state);
  }
  for (const RankState& state : waiting) {
    out << "rank " << state.rank << " (" << state.where << ") waits: ";
    describe(out, state);
  }
  for (const RankState& state : computing) {
    out << "rank " << state.rank << " (" << state.where << ") runs outside communication: ";
    describe(out, state);
  }
  for (const RankState& state : ended) {
    out << "rank " << state.rank << " (" << state.where << ") has ended in good order: ";
    describe(out, state);
  }
  for (const RankState& state : unreadable) {
    out << "rank " << state.rank << " is unknown: " << state.unreadable << '\n';
  }
  return out.str();
}

}  // namespace longhaul::runtime

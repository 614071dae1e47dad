#pragma once
// What a host backend has to provide: one blocking, grouped exchange of raw bytes.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/stream.h"

namespace longhaul::runtime {

/// Raw bytes to or from a world rank. Never empty, never to oneself.
struct Outgoing {
  int peer = 0;
  const std::byte* data = nullptr;
  std::int64_t bytes = 0;
};
struct Incoming {
  int peer = 0;
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

/// Which exchange this is: `context` and `self` match messages, the rest is for whoever reads an
/// error.
struct ExchangeInfo {
  int context = 0;  ///< separates the traffic of communicators
  int self = 0;     ///< world rank of the caller
  std::string communicator;
  std::string what;
  std::int64_t sequence = 0;  ///< operations issued on the communicator before this one
  double timeout_seconds = 0;
};

/// Where memory of a rank lies, in words that travel.
struct SharedPlace {
  std::int64_t owner = 0;   ///< world rank
  std::int64_t offset = 0;  ///< in what it shares
};

/// Moves bytes between the ranks of a job. Thread-safe; one context is used by one thread at a
/// time.
class Transport {
 public:
  virtual ~Transport() = default;
  /// Blocks until every send and receive has completed. Messages match in order per (context,
  /// sender, receiver); sizes must agree. The buffers are free to reuse when it returns or throws.
  /// Throws: Error(hang) after timeout_seconds, Error(internal) on a size mismatch or a broken
  /// backend.
  virtual void exchange(const ExchangeInfo& info, std::span<const Outgoing> sends,
                        std::span<const Incoming> receives) = 0;

  /// Whether two world ranks can read each other's memory of CPU streams.
  virtual bool share_memory(int, int) const { return false; }
  /// Where `data`, memory of this rank's CPU streams or borrowed, lies. Throws Error(internal) for
  /// other memory.
  virtual SharedPlace place_of(const std::byte* data) const;
  /// A place as this rank sees it. Throws Error(internal) for one that does not exist.
  virtual const std::byte* at(const SharedPlace& place) const;
};

/// A message that has not completed when the time is over.
struct MissingPeer {
  int peer = 0;
  std::int64_t bytes = 0;
  bool sending = false;
};
/// Throws Error(hang) naming the rank, the operation, its communicator and the peers still missing.
[[noreturn]] void fail_hang(const ExchangeInfo& info, double waited_seconds,
                            const std::vector<MissingPeer>& missing);

}  // namespace longhaul::runtime

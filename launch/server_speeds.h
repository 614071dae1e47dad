#pragma once
// How fast attention servers have been, for the plans of later steps.

#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "launch/attention_axis.h"
#include "parallel/attention.h"

namespace longhaul::launch {

/// What a server attended to in a step. Without pairs nothing is learnt of it.
struct ServedWork {
  double pairs = 0;  ///< (query, key) pairs times heads
  double seconds = 0;
};

/// What a rank tells the others of attention servers at the end of a step.
class SpeedMeter {
 public:
  /// `external`: nullptr where servers are ranks. Borrows all three.
  SpeedMeter(const AttentionAxis& axis, const parallel::Attention& attention,
             const parallel::ExternalServers* external);

  int servers() const;
  /// Of what this rank has attended to, or of each external server has for it: pairs and seconds,
  /// since the last time.
  std::vector<double> since_last_step();
  /// From the numbers of each rank, among which since_last_step() gave those from `first` on.
  std::vector<ServedWork> by_server(const std::vector<std::vector<double>>& ranks,
                                    std::size_t first) const;

 private:
  const AttentionAxis& axis_;
  const parallel::Attention& attention_;
  const parallel::ExternalServers* const external_;
  std::vector<double> last_;
};

/// A plan is made while the step before it runs, so the plans of step s are made with what was
/// measured up to step s - 2. All ranks add the same numbers, and so have the same speeds.
class ServerSpeeds {
 public:
  explicit ServerSpeeds(int servers) : work_(static_cast<std::size_t>(servers)) {}

  /// Of all servers, after a step. A server's rate is that of all its work so far, where a step's
  /// counts three quarters of the next one's: what documents a step has is noise.
  void add(std::int64_t step, std::span<const ServedWork> servers);
  /// AttentionServers::speeds of a step's plans: the fastest is kFastest, and one of which nothing
  /// is known as fast as that. Empty before anything is known. They stay as they were while no
  /// server's has changed by more than one. On any thread.
  std::vector<std::int64_t> of(std::int64_t step) const;

  static constexpr std::int64_t kFastest = 64;

 private:
  std::vector<ServedWork> work_;
  mutable std::mutex mutex_;
  std::deque<std::pair<std::int64_t, std::vector<std::int64_t>>> speeds_;  // after recent steps
};

}  // namespace longhaul::launch

#pragma once
// The ranks of a run that attend together, and who serves them.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "launch/config.h"
#include "parallel/disaggregation/external_servers.h"
#include "parallel/disaggregation/tasks.h"
#include "parallel/schemes/expression.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// Which ranks share a call of attention. Those of the context axis: data ranks attend apart, each
/// to its own sequences. Under a scheme that spans data (parallel::Scheme::spans_data) those of
/// data x context together, to the sequences of all data ranks, with the dedicated servers behind
/// them.
struct AttentionAxis {
  bool spans_data = false;
  int groups = 1;                           ///< that attend apart
  std::int64_t sequences = 1;               ///< that a pass of one group takes
  int homes = 1;                            ///< ranks of a group that hold rows
  int dedicated = 0;                        ///< ranks behind them that hold none
  parallel::AttentionServers servers = {};  ///< without speeds, which a run measures

  /// Of a group.
  int ranks() const { return homes + dedicated; }
  /// Of the run.
  int world_size() const { return groups * homes + dedicated; }
  /// The group of a rank of the run, and its rank there.
  int group(int world_rank) const { return spans_data ? 0 : world_rank / homes; }
  int rank(int world_rank) const { return spans_data ? world_rank : world_rank % homes; }
  /// Whether a rank of the run is a dedicated server: it has no rows, parameters nor checkpoint.
  bool serves(int world_rank) const { return world_rank >= groups * homes; }

  /// The ranks of this one's group, in the order of the axis. Collective over `world`.
  std::unique_ptr<runtime::Communicator> split(runtime::Communicator& world,
                                               const std::string& name) const;
};

/// Of a configuration whose keys are good and whose grid is known; with the scheme that it begins
/// with.
AttentionAxis attention_axis(const TrainConfig& config);
/// Of one of its schemes.
AttentionAxis attention_axis(const TrainConfig& config, const parallel::Expression& scheme);

/// Ranks that are dedicated attention servers, beside those of data x context.
std::int64_t dedicated_servers(const TrainConfig& config);

/// "in place", "2 dedicated ranks: 4 and 5", "2 external servers: unix:a, tcp:b:1"; nothing where
/// the scheme has none.
std::optional<std::string> servers_text(const TrainConfig& config);

/// Connects this rank to the configuration's external servers; nullptr where it has none. A server
/// that is lost, or is back, gets a line on the console. Throws as parallel::connect_servers().
std::shared_ptr<parallel::ExternalServers> connect_external_servers(const TrainConfig& config,
                                                                    int world_rank);

/// Adds to the draft what is wrong with [attention_servers], alone and beside scheme and device.
void check_attention_servers(TrainDraft& draft);

}  // namespace longhaul::launch

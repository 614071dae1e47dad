#include "launch/attention_axis.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>

#include "launch/schemes.h"
#include "parallel/disaggregation/remote_task.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/net/address.h"

namespace longhaul::launch {

using parallel::ServerMode;
using runtime::counted;

namespace {

constexpr const char* kSection = "attention_servers";

ServerMode mode_of(const AttentionServersConfig& servers) {
  for (const ServerMode mode : {ServerMode::dedicated, ServerMode::external}) {
    if (servers.mode == parallel::name(mode)) return mode;
  }
  return ServerMode::in_place;
}

parallel::AttentionServers servers_of(const AttentionServersConfig& config) {
  parallel::AttentionServers servers;
  servers.mode = mode_of(config);
  if (servers.mode == ServerMode::dedicated)
    servers.count = static_cast<int>(config.count.value_or(0));
  if (servers.mode == ServerMode::external)
    servers.count = static_cast<int>(config.addresses.size());
  if (config.buffer_bytes > 0) servers.buffer_bytes = config.buffer_bytes;
  return servers;
}

/// Keys of [attention_servers] that are not as they are without the section.
std::vector<std::string> keys_given(TrainDraft& draft) {
  std::vector<std::string> given;
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    // A resolved configuration says the defaults.
    if (key.section == std::string_view(kSection) && draft.is_set(key.path()) &&
        draft.good({key.path().c_str()}) && value_text(key, draft.config) != key.default_value)
      given.push_back(key.path());
  }
  return given;
}

void refuse_key(TrainDraft& draft, const std::string& path, const std::string& why) {
  const auto value = value_text(*config_schema().find(path), draft.config);
  draft.key_problem(path, value.value_or("not set"), why);
}

/// Keys of one mode are given with it, and not with another.
void check_mode(TrainDraft& draft) {
  const AttentionServersConfig& servers = draft.config.attention_servers;
  struct Of {
    const char* path;
    ServerMode mode;
    bool given;
    const char* what;  ///< that the mode needs; nullptr: may be left out
  };
  const Of keys[] = {
      {"attention_servers.count", ServerMode::dedicated, servers.count.has_value(),
       "the number of ranks that only attend"},
      {"attention_servers.addresses", ServerMode::external, !servers.addresses.empty(),
       "the addresses of the servers, which `longhaul serve` prints"},
      {"attention_servers.token_file", ServerMode::external, servers.token_file.has_value(),
       "the file of the servers' token"},
      {"attention_servers.timeout_seconds", ServerMode::external, true, nullptr}};
  const std::vector<std::string> given = keys_given(draft);
  for (const auto& [path, mode, is_given, what] : keys) {
    if (!draft.good({path})) continue;
    if (servers.mode == parallel::name(mode)) {
      if (!is_given && what != nullptr)
        refuse_key(draft, "attention_servers.mode", fmt::format("this needs {}, {}", path, what));
    } else if (std::ranges::count(given, path) != 0) {
      refuse_key(draft, path,
                 fmt::format("mode = {} has no use for it, only {}; leave it out",
                             runtime::quote_toml(servers.mode), parallel::name(mode)));
    }
  }
}

void check_addresses(TrainDraft& draft) {
  std::vector<std::string> seen;
  for (const std::string& address : draft.config.attention_servers.addresses) {
    if (std::ranges::count(seen, address) != 0)
      refuse_key(draft, "attention_servers.addresses",
                 fmt::format("{} stands there twice; each server has one address",
                             runtime::quote_toml(address)));
    seen.push_back(address);
    try {
      const runtime::net::Address parsed = runtime::net::parse_address(address);
      if (!parsed.is_unix() && parsed.port == 0)
        refuse_key(draft, "attention_servers.addresses",
                   fmt::format("{} has port 0, which only a server that listens may have; expected "
                               "the port that `longhaul serve` printed",
                               runtime::quote_toml(address)));
    } catch (const runtime::Error& error) {
      refuse_key(draft, "attention_servers.addresses", error.what());
    }
  }
}

}  // namespace

std::unique_ptr<runtime::Communicator> AttentionAxis::split(runtime::Communicator& world,
                                                            const std::string& name) const {
  LONGHAUL_CHECK(world.size() == world_size(), "a run of ", world_size(),
                 " ranks on a communicator of ", world.size());
  return world.split(group(world.rank()), world.rank(), name);
}

AttentionAxis attention_axis(const TrainConfig& config) {
  return attention_axis(config, scheme_changes(config).front().scheme);
}

AttentionAxis attention_axis(const TrainConfig& config, const parallel::Expression& scheme) {
  const ParallelismConfig& p = config.parallelism;
  const auto data = static_cast<int>(p.data_parallel_replicate_degree),
             context = static_cast<int>(std::max<std::int64_t>(1, p.context_parallel_degree));
  const std::int64_t micro = config.training.micro_batch_size;
  if (!spans_data(scheme)) return {false, data, micro, context};
  return {true,
          1,
          data * micro,
          data * context,
          static_cast<int>(dedicated_servers(config)),
          servers_of(config.attention_servers)};
}

std::int64_t dedicated_servers(const TrainConfig& config) {
  const AttentionServersConfig& servers = config.attention_servers;
  return mode_of(servers) == ServerMode::dedicated ? servers.count.value_or(0) : 0;
}

std::optional<std::string> servers_text(const TrainConfig& config) {
  const AttentionAxis axis = attention_axis(config);
  if (!axis.spans_data) return std::nullopt;
  std::string text = "in place, on every rank";
  if (axis.servers.mode == ServerMode::external) {
    text = fmt::format("{}: {}", counted(axis.servers.count, "external server"),
                       fmt::join(config.attention_servers.addresses, ", "));
  } else if (axis.dedicated > 0) {
    text = counted(axis.dedicated, "dedicated rank");
    if (config.parallelism.context_parallel_degree > 0) {
      text += axis.dedicated == 1
                  ? fmt::format(": {}", axis.homes)
                  : fmt::format(": {} to {}", axis.homes, axis.homes + axis.dedicated - 1);
    }
  }
  if (config.attention_servers.measure_speeds) text += ", by their measured speeds";
  return text;
}

std::shared_ptr<parallel::ExternalServers> connect_external_servers(const TrainConfig& config,
                                                                    int world_rank) {
  if (attention_axis(config).servers.mode != ServerMode::external) return nullptr;
  const AttentionServersConfig& servers = config.attention_servers;
  parallel::ExternalServersOptions options;
  options.addresses = servers.addresses;
  options.token_file = servers.token_file.value_or("");
  options.timeout_seconds = servers.timeout_seconds;
  options.name = fmt::format("rank {}", world_rank);
  options.build = parallel::task_build(config.debug.pretend.has_value());
  options.say = [world_rank](const std::string& line) {
    std::printf("servers  rank %d: %s\n", world_rank, line.c_str());
    std::fflush(stdout);
  };
  return parallel::connect_servers(options);
}

void check_attention_servers(TrainDraft& draft) {
  const TrainConfig& config = draft.config;
  if (!draft.good({"attention_servers.mode", "parallelism.context_parallel_scheme",
                   "parallelism.context_parallel_switch", "model.num_attention_heads",
                   "model.num_key_value_heads"}))
    return;
  const parallel::Expression scheme = scheme_changes(config).front().scheme;
  if (!spans_data(scheme)) {
    for (const std::string& path : keys_given(draft)) {
      refuse_key(draft, path,
                 fmt::format("scheme {} has no attention servers, only disaggregated has; leave it "
                             "out, or set parallelism.context_parallel_scheme = \"disaggregated\"",
                             scheme.name));
    }
    return;
  }
  check_mode(draft);
  check_addresses(draft);
  if (draft.good({"device.kind"}) && config.device.kind == "cuda" &&
      mode_of(config.attention_servers) == ServerMode::external) {
    refuse_key(draft, "attention_servers.mode",
               "external servers attend to rows in host memory, and device.kind is \"cuda\"; "
               "expected in_place or dedicated");
  }
}

}  // namespace longhaul::launch

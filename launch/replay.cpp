#include "launch/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "launch/device.h"
#include "launch/metrics.h"
#include "parallel/verifier/verifier.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/gather_cores.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::launch {

using runtime::Communicator;
using runtime::counted;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Stream;

namespace {

/// The node of each rank: equal hosts are one, or as `ranks_per_node` says.
std::vector<int> nodes_of_ranks(Communicator& world, const std::string& host, int ranks_per_node) {
  if (ranks_per_node > 0) return parallel::nodes_in_order(world.size(), ranks_per_node);
  std::map<std::string, int> numbers;
  std::vector<int> nodes;
  for (const std::string& other :
       runtime::gather_texts(world, host, Stream::cpu("hosts"), replay_deadline()))
    nodes.push_back(numbers.emplace(other, static_cast<int>(numbers.size())).first->second);
  return nodes;
}

/// Where this rank computes. Collective.
struct Compute {
  Stream stream;
  bool shared = false;  ///< ranks compute on one device
};
Compute compute_stream(const AttentionOptions& options, Communicator& world,
                       const std::string& host, int local_rank) {
  if (options.device == "cpu") {
    const auto shares = runtime::gather_cores(world, host);
    const int given = runtime::threads_of_environment();
    const runtime::CoreShare& own = shares[static_cast<std::size_t>(world.rank())];
    return {Stream::cpu("compute", given > 0 ? given : own.threads)};
  }
  const auto devices = cuda_devices(world, {host, local_rank, true, "--device cuda"});
  return {Stream::cuda("compute", devices[static_cast<std::size_t>(world.rank())].index),
          share_devices(devices)};
}

void run_loopback_ranks(const AttentionOptions& options, const MakeReplay& make,
                        const runtime::OutputFile& output) {
  const int ranks = std::max(1, options.ranks);
  const auto replay = make(ranks);
  runtime::run_loopback(
      ranks, {.timeout_seconds = options.timeout_seconds, .recorders = {}},
      [&](std::unique_ptr<Communicator> world) {
        const Stream compute = compute_stream(options, *world, "", world->rank()).stream;
        auto context = world->split(0, world->rank(), "context");
        const int per_node = options.ranks_per_node > 0 ? options.ranks_per_node : ranks;
        replay->run(
            {*world, std::move(context), compute, parallel::nodes_in_order(ranks, per_node)},
            output);
      });
}

void run_process(const AttentionOptions& options, const MakeReplay& make,
                 const runtime::OutputFile& output) {
  const bool share = options.shared_memory == "auto" && options.device == "cpu";
  runtime::MpiSession session({.timeout_seconds = options.timeout_seconds, .share_memory = share});
  const runtime::MpiPlace place{session.rank(), session.size(), session.local_rank(),
                                session.local_size()};
  runtime::check_launcher(runtime::process_environment(), place);
  if (options.ranks != 0)
    runtime::check_grid_size(place, options.ranks, "--ranks " + std::to_string(options.ranks));
  const auto replay = make(session.size());
  const std::unique_ptr<Communicator> world = session.world();
  {
    const auto [compute, shared] =
        compute_stream(options, *world, session.host_name(), session.local_rank());
    std::optional<runtime::NcclOptions> nccl;
    if (options.communicator == "nccl") {
      nccl.emplace();
      nccl->device = compute.device().index;
      nccl->timeout_seconds = options.timeout_seconds;
      nccl->share_device = shared;
    }
    auto context = device_communicator(world->split(0, world->rank(), "context"), nccl);
    replay->run({*world, std::move(context), compute,
                 nodes_of_ranks(*world, session.host_name(), options.ranks_per_node)},
                output);
  }
  if (share && session.rank() == 0 && session.size() > 1)
    fmt::print("lending: {}\n", session.sharing_text());
  session.close();
}

}  // namespace

void run_ranks(const AttentionOptions& options, const MakeReplay& make,
               const runtime::OutputFile& output) {
  if (options.communicator == "loopback") {
    run_loopback_ranks(options, make, output);
  } else {
    run_process(options, make, output);
  }
}

runtime::Deadline replay_deadline() { return runtime::deadline_in(3600); }

DType dtype_of_option(const char* option, const std::string& text) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    if (text == runtime::name(dtype)) return dtype;
  }
  fail(ExitCode::config, option, " ", text, ": expected float32 or bfloat16");
}

void verify_schedules(parallel::SchemeInputs inputs) {
  for (const auto direction : {parallel::Direction::forward, parallel::Direction::backward}) {
    inputs.direction = direction;
    const parallel::Verdict verdict =
        parallel::verify(parallel::build_schedule(inputs), inputs.masks, inputs.layout);
    if (!verdict.ok()) {
      fail(ExitCode::internal, "the ", parallel::name(direction), " schedule of ",
           inputs.scheme.text(), " does not verify: ", parallel::name(verdict.fault), ": ",
           verdict.message);
    }
  }
}

double time_together(Communicator& world, const Stream& compute,
                     const std::function<void()>& work) {
  const Stream host = Stream::cpu("start");
  compute.synchronize(replay_deadline());  // the inputs are in place before the clock runs
  world.barrier(host);
  host.synchronize(replay_deadline());
  const auto begin = runtime::Clock::now();
  work();
  compute.synchronize(replay_deadline());
  return std::chrono::duration<double>(runtime::Clock::now() - begin).count();
}

ReplayFigures gather_figures(const parallel::Attention& attention, const ReplayRank& rank,
                             double seconds) {
  ReplayFigures figures;
  const parallel::LinkBytes links =
      parallel::link_bytes(attention.sent_to(), rank.world.rank(), rank.nodes);
  const parallel::AttendTimes times = attention.attend_times();
  double pairs = 0;
  for (const auto& of : runtime::gather_numbers(
           rank.world,
           {static_cast<double>(attention.sent_bytes()), static_cast<double>(links.within_nodes),
            static_cast<double>(links.between_nodes), seconds, times.seconds, times.cpu_seconds,
            static_cast<double>(times.pairs)},
           Stream::cpu("figures"), replay_deadline())) {
    figures.sent_bytes.push_back(static_cast<std::int64_t>(of[0]));
    figures.link_bytes.push_back(
        {static_cast<std::int64_t>(of[1]), static_cast<std::int64_t>(of[2])});
    figures.seconds = std::max(figures.seconds, of[3]);
    figures.attention_seconds.push_back(of[4]);
    figures.attention_cpu_seconds.push_back(of[5]);
    pairs += of[6];
  }
  if (pairs == 0) {  // a recurrence
    figures.attention_seconds.clear();
    figures.attention_cpu_seconds.clear();
  }
  figures.nodes = rank.nodes;
  return figures;
}

void print_summary(const AttentionOptions& options, const std::string& scheme,
                   const ReplayFigures& figures) {
  parallel::LinkBytes sum;
  for (const parallel::LinkBytes& bytes : figures.link_bytes) {
    sum.within_nodes += bytes.within_nodes;
    sum.between_nodes += bytes.between_nodes;
  }
  const int nodes = *std::ranges::max_element(figures.nodes) + 1;
  fmt::print("{} over {}, mask {}, {} on {}: {} sent within nodes, {} between; {:.4f} s\n", scheme,
             options.layout, options.mask.name, counted(std::ssize(figures.nodes), "rank"),
             counted(nodes, "node"), counted(sum.within_nodes, "byte"),
             runtime::grouped(sum.between_nodes), figures.seconds);
  const bool on_cpu = options.device == "cpu";
  const auto& attended = on_cpu ? figures.attention_cpu_seconds : figures.attention_seconds;
  if (attended.empty()) return;
  const Straggler straggler = straggler_of(attended);
  fmt::print("attention: {:.4f} s on the slowest rank, {:.2f} of the mean; {}\n",
             straggler.mean_seconds + straggler.seconds, straggler.imbalance,
             !figures.pretended.empty() ? fmt::format("pretended ({})", figures.pretended)
             : on_cpu                   ? "seconds of its threads on the processor"
                                        : "the device's seconds");
}

}  // namespace longhaul::launch

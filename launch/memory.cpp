#include "launch/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "launch/attention_axis.h"
#include "launch/batches.h"
#include "launch/config.h"
#include "launch/demanding_batches.h"
#include "launch/model.h"
#include "launch/schemes.h"
#include "models/optimizer.h"
#include "parallel/sharding.h"
#include "runtime/build_info.h"
#include "runtime/cgroup.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/host_communicator.h"
#include "runtime/error.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/matmul.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

using parallel::CallBytes;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::HostCommunicator;
using runtime::size_text;

namespace {

bool sharded(const TrainConfig& config) { return config.parallelism.shard == "optimizer"; }

std::int64_t elements_of(const std::vector<parallel::ElementRange>& ranges) {
  std::int64_t elements = 0;
  for (const parallel::ElementRange& range : ranges) elements += range.elements();
  return elements;
}

MemoryEstimate states_of(const TrainConfig& config, const models::Model& model, int rank) {
  const std::int64_t elements = model.table().elements();
  const auto ranks = static_cast<int>(grid_of(config).ranks());
  MemoryEstimate estimate;
  if (rank >= ranks) return estimate;  // a dedicated attention server
  estimate.gradients = elements * size_bytes(DType::float32);
  estimate.parameters = estimate.gradients;
  if (config.training.dtype != DType::float32)
    estimate.parameters += elements * size_bytes(config.training.dtype);
  const std::int64_t updated =
      sharded(config) ? elements_of(parallel::Sharding(model.table(), ranks).owned(rank))
                      : elements;
  estimate.optimizer = updated * models::AdamW::kStateBytes;
  return estimate;
}

/// Whether this build knows what attention's kernels overwrite.
bool knows_kernels(const TrainConfig& config) {
  return !on_cuda(config) || runtime::build_info().cuda;
}

/// Where the blocks of attention calls run; where that cannot be planned here, the CPU.
attention::BlockPlace block_place(const MemoryQuestion& question) {
  attention::BlockPlace place{{}, question.threads};
  if (!on_cuda(question.config) || !knows_kernels(question.config)) return place;
  place.device = {runtime::DeviceKind::cuda, question.device.index};
  place.kernels = attention_kernels(question.config);
  place.deterministic = question.config.debug.deterministic;
  return place;
}

/// What calls of one kind take, the most under the schemes of the run; the model's, by kind.
std::vector<CallBytes> calls_of(const MemoryQuestion& question, const models::Model& model,
                                const PlannedBatch& batch, int axis_rank) {
  const AttentionAxis axis = attention_axis(question.config);
  const bool serves = axis_rank >= axis.homes;
  const TrainConfig& config = question.config;
  std::vector<CallBytes> most;
  for (const models::AttentionCall& call : model.attention_calls()) {
    const attention::HeadMasks& masks = batch.masks[call.mask];
    CallBytes& of = most.emplace_back();
    if (serves && call.shapes.linear) continue;  // nothing of it reaches a server
    const auto add = [&](const CallBytes& bytes) {
      of = {std::max(of.forward, bytes.forward), std::max(of.backward, bytes.backward),
            std::max(of.kept, bytes.kept), std::max(of.staged, bytes.staged),
            std::max(of.gathered, bytes.gathered)};
    };
    for (const parallel::Expression& scheme : schemes_of(config, call)) {
      parallel::SchemeInputs inputs{masks, batch.layout, call.shapes, {}, {}, scheme, axis.servers};
      if (config.parallelism.context_parallel_wire_dtype != DType::float32)
        inputs.wire_dtype = config.parallelism.context_parallel_wire_dtype;
      add(parallel::call_bytes(inputs, axis_rank, call.scoring, block_place(question)));
    }
    if (!call.halo) continue;
    const CallBytes halo =
        parallel::halo_bytes({batch.layout, attention::independent_parts(masks), call.halo->width,
                              call.halo->channels, call.halo->activation},
                             axis_rank);
    const std::int64_t kept = of.kept + halo.kept;
    add(halo);
    of.kept = kept;
  }
  return most;
}

/// Of the sums of gradients over ranks. Those of GPUs are staged in host memory, or by NCCL.
std::int64_t gradient_messages(const TrainConfig& config, const models::Model& model, int rank) {
  const auto ranks = static_cast<int>(grid_of(config).ranks());
  if (on_cuda(config) || rank >= ranks) return 0;
  std::int64_t most = 0;
  const parallel::Sharding sharding(model.table(), ranks);
  for (const parallel::Bucket& bucket : sharding.buckets()) {
    most = std::max(most, sharded(config) ? HostCommunicator::reduce_staging_bytes(
                                                bucket.counts, rank, DType::float32)
                                          : HostCommunicator::all_reduce_staging_bytes(
                                                bucket.range.elements(), ranks, DType::float32));
  }
  if (!sharded(config)) return most;
  return std::max(most,
                  HostCommunicator::all_reduce_staging_bytes(
                      runtime::ops::norm_chunks(model.table().elements()), ranks, DType::float64));
}

/// Of products of so many rows: with no more than three parameters side by side, q, k and v.
std::int64_t matmul_bytes(const MemoryQuestion& question, const models::Model& model,
                          std::int64_t rows) {
  if (on_cuda(question.config)) return runtime::ops::kCudaMatmulScratchBytes;
  std::int64_t largest = 0;
  for (const parallel::Parameter& parameter : model.table().parameters())
    largest = std::max(largest, parameter.range.elements());
  return runtime::ops::cpu_matmul_scratch_bytes(question.config.training.dtype, question.threads,
                                                rows * 3 * largest);
}

struct Remedy {
  std::string what;
  std::int64_t saved_bytes = 0;
};

/// What a rank would need less of, the most first.
std::vector<Remedy> remedies(const MemoryQuestion& question, int rank) {
  const TrainConfig& config = question.config;
  const std::int64_t now = estimate_memory(question, rank).total();
  std::vector<Remedy> found;
  const auto consider = [&](const std::string& what, const auto& change) {
    TrainConfig other = config;
    change(other);
    try {
      const MemoryQuestion changed{other, question.vocabulary, question.sequences, question.threads,
                                   question.device};
      const std::int64_t saved = now - estimate_memory(changed, rank).total();
      if (saved > 0) found.push_back({what, saved});
    } catch (const runtime::Error& error) {
      if (error.code() != ExitCode::config) throw;  // this scheme cannot be had on that grid
    }
  };
  if (config.activation_checkpoint.mode != "full") {
    consider("activation_checkpoint.mode = \"full\" (recompute activations)",
             [](TrainConfig& other) { other.activation_checkpoint.mode = "full"; });
  }
  const std::int64_t twice = 2 * config.parallelism.context_parallel_degree;
  consider(fmt::format("{} ranks of the context axis", twice),
           [&](TrainConfig& other) { other.parallelism.context_parallel_degree = twice; });
  if (!sharded(config) && grid_of(config).ranks() > 1) {
    consider("parallelism.shard = \"optimizer\"",
             [](TrainConfig& other) { other.parallelism.shard = "optimizer"; });
  }
  if (const std::int64_t half = config.training.micro_batch_size / 2; half > 0) {
    consider(fmt::format("training.micro_batch_size = {}", half),
             [&](TrainConfig& other) { other.training.micro_batch_size = half; });
  }
  if (config.training.interleave > 1) {
    consider("training.interleave = 1", [](TrainConfig& other) { other.training.interleave = 1; });
  }
  std::ranges::sort(found, std::greater{}, &Remedy::saved_bytes);
  return found;
}

std::string remedies_text(const MemoryQuestion& question, int rank) {
  std::string text;
  for (const Remedy& remedy : remedies(question, rank)) {
    text +=
        fmt::format("\n         {} saves {} a rank", remedy.what, size_text(remedy.saved_bytes));
  }
  return text;
}

[[noreturn]] void refuse_states(const MemoryQuestion& question, const std::string& where,
                                std::int64_t ranks, std::int64_t states, std::int64_t memory) {
  const TrainConfig& config = question.config;
  std::string advice = "neither a shorter sequence nor recomputation helps; take a smaller model";
  if (!sharded(config) && grid_of(config).ranks() > 1)
    advice += ", parallelism.shard = \"optimizer\"";
  if (ranks > 1) {
    const std::int64_t fitting = memory / std::max<std::int64_t>(1, states / ranks);
    if (fitting > 0)
      advice += fmt::format(", at most {} of its ranks on a {}", fitting,
                            on_cuda(config) ? "GPU" : "host");
  }
  fail(ExitCode::memory, "parameters, gradients and optimizer state alone take ", size_text(states),
       ranks > 1 ? fmt::format(" in {} ranks", ranks) : "", " on ", where, ", which has ",
       size_text(memory), ": ", advice);
}

/// What a rank's tensors lie in: its host's memory, or its GPU's.
struct Room {
  std::string key;    ///< a word: the same for all ranks that share it
  std::string where;  ///< "host a"
  std::int64_t bytes = 0;
};

Room room_of(const Place& place, int rank) {
  if (place.devices.empty())
    return {place.host, "host " + place.host, runtime::node_memory_bytes()};
  const RankDevice& device = place.devices[static_cast<std::size_t>(rank)];
  return {device.uuid, device.text(), runtime::cuda_device_memory(device.index).free_bytes};
}

/// What the ranks that share a room need together.
struct Need {
  std::string where;
  std::int64_t ranks = 0, states = 0, total = 0, memory = 0;
  std::int64_t largest = 0;         ///< total of one rank that trains
  std::int64_t largest_server = 0;  ///< of a dedicated attention server
};

/// By Room::key.
std::map<std::string, Need> gather_needs(runtime::Communicator& world, const Room& room,
                                         const MemoryEstimate& own, bool serves) {
  std::map<std::string, Need> needs;
  const std::string text = runtime::concat(own.states(), " ", own.total(), " ", room.bytes, " ",
                                           serves ? 1 : 0, " ", room.key, " ", room.where);
  for (const std::string& other : runtime::gather_texts(world, text, runtime::Stream::cpu("memory"),
                                                        runtime::deadline_in(3600))) {
    std::istringstream words(other);
    std::int64_t states = 0, total = 0, memory = 0;
    bool of_server = false;
    std::string key;
    words >> states >> total >> memory >> of_server >> key >> std::ws;
    Need& need = needs[key];
    std::getline(words, need.where);
    ++need.ranks;
    need.states += states;
    need.total += total;
    std::int64_t& largest = of_server ? need.largest_server : need.largest;
    largest = std::max(largest, total);
    need.memory = memory;
  }
  return needs;
}

/// Of this machine, of which a configuration is judged: one GPU's or the host's; 0 for a GPU where
/// there is none.
std::int64_t memory_here(const TrainConfig& config) {
  if (!on_cuda(config)) return runtime::node_memory_bytes();
  return runtime::cuda_device_count() == 0 ? 0 : runtime::cuda_device_memory(0).total_bytes;
}

/// Ranks that surely share this machine's memory, or one of its GPUs: those of one process are all
/// here, of others nobody knows yet how many share a host.
std::int64_t ranks_together(const TrainConfig& config, std::int64_t ranks) {
  if (config.comm.backend != "loopback") return 1;
  const int devices = on_cuda(config) ? std::max(1, runtime::cuda_device_count()) : 1;
  return (ranks + devices - 1) / devices;
}

}  // namespace

MemoryEstimate estimate_states(const MemoryQuestion& question, int rank) {
  return states_of(question.config, make_model(question.config, question.vocabulary), rank);
}

MemoryEstimate estimate_memory(const MemoryQuestion& question, int rank) {
  const TrainConfig& config = question.config;
  const models::Model model = make_model(config, question.vocabulary);
  const AttentionAxis axis = attention_axis(config);
  const int axis_rank = axis.rank(rank);
  const BatchShape shape = batch_shape(config, model.masks(), axis, axis_rank);
  const MemoryEstimate states = states_of(config, model, rank);
  MemoryEstimate most;
  for (const std::vector<std::int64_t>& numbers : demanding_batches(config, question.sequences)) {
    const PlannedBatch batch = plan_batch(question.sequences, numbers, shape);
    MemoryEstimate estimate = states;
    const std::int64_t rows = batch.layout.rows(axis_rank), together = config.training.interleave;
    const std::vector<CallBytes> calls = calls_of(question, model, batch, axis_rank);
    const std::int64_t pass = model.pass_bytes(rows, calls, together);
    const std::int64_t without =
        model.pass_bytes(rows, std::vector<CallBytes>(calls.size()), together);
    estimate.attention = pass - without;
    estimate.activations = std::min(without, together * model.activation_bytes(rows));
    estimate.passing = without - estimate.activations;
    if (!axis.serves(rank)) estimate.passing += matmul_bytes(question, model, rows);
    const bool nccl = config.comm.backend == "nccl";
    for (const CallBytes& call : calls)
      estimate.messages = std::max(estimate.messages, nccl ? call.gathered : call.staged);
    if (estimate.total() > most.total()) most = estimate;
  }
  most.messages += gradient_messages(config, model, rank);
  return most;
}

std::string estimate_text(const MemoryEstimate& estimate) {
  return fmt::format(
      "{} a rank: parameters {}, gradients {}, optimizer {}, activations {}, attention {}, "
      "messages "
      "{}, passing {}",
      size_text(estimate.total()), size_text(estimate.parameters), size_text(estimate.gradients),
      size_text(estimate.optimizer), size_text(estimate.activations), size_text(estimate.attention),
      size_text(estimate.messages), size_text(estimate.passing));
}

std::string check_memory(const MemoryQuestion& question, runtime::Communicator& world,
                         const Place& place) {
  const Room room = room_of(place, world.rank());
  const bool serves = attention_axis(question.config).serves(world.rank());
  for (const auto& [key, need] :
       gather_needs(world, room, estimate_states(question, world.rank()), serves)) {
    if (need.states > need.memory)
      refuse_states(question, need.where, need.ranks, need.states, need.memory);
  }
  const MemoryEstimate own = estimate_memory(question, world.rank());
  const auto needs = gather_needs(world, room, own, serves);
  std::string text = estimate_text(own);
  std::int64_t largest = 0, server = 0;
  for (const auto& [key, need] : needs) {
    largest = std::max(largest, need.largest);
    server = std::max(server, need.largest_server);
  }
  if (largest > own.total()) text += fmt::format("; at most {} on another", size_text(largest));
  if (dedicated_servers(question.config) > 0)
    text += fmt::format("; an attention server at most {}", size_text(server));
  for (const auto& [key, need] : needs) {
    if (need.total <= need.memory) continue;
    text += fmt::format("\nwarning  {} ranks may need {} on {}, which has {}", need.ranks,
                        size_text(need.total), need.where, size_text(need.memory)) +
            remedies_text(question, world.rank());
    break;
  }
  return text;
}

std::string judge_memory(const MemoryQuestion& question) {
  const TrainConfig& config = question.config;
  const std::int64_t memory = memory_here(config);
  const int ranks = attention_axis(config).world_size();
  const std::int64_t together = ranks_together(config, ranks);
  const char* const here = on_cuda(config) ? "this host's GPU" : "this host";
  const std::int64_t states = together * estimate_states(question, 0).states();
  if (memory > 0 && states > memory) refuse_states(question, here, together, states, memory);
  MemoryEstimate most;
  int worst = 0;
  constexpr int kTried = 16;  // of many ranks, some, the ends among them
  const int tried = std::min(ranks, kTried);
  for (int i = 0; i < tried; ++i) {
    const int rank = tried == 1 ? 0 : static_cast<int>(std::int64_t{i} * (ranks - 1) / (tried - 1));
    const MemoryEstimate estimate = estimate_memory(question, rank);
    if (estimate.total() <= most.total()) continue;
    most = estimate;
    worst = rank;
  }
  std::string text = estimate_text(most);
  if (!knows_kernels(config))
    text += ", and what attention's kernels take for a while, which only a build with CUDA knows";
  if (memory == 0) return text + "; there is no GPU here to hold it against";
  if (together * most.total() > memory) {
    text += fmt::format("\nwarning  {} may need {} on {}, which has {}",
                        together == 1 ? "a rank" : fmt::format("{} ranks", together),
                        size_text(together * most.total()), here, size_text(memory)) +
            remedies_text(question, worst);
  } else {
    text += fmt::format("; {}'s {} hold {} such rank{}", here, size_text(memory),
                        memory / most.total(), memory / most.total() == 1 ? "" : "s");
  }
  return text;
}

}  // namespace longhaul::launch

#include "launch/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "attention/block.h"
#include "launch/attention_case.h"
#include "launch/attention_numbers.h"
#include "launch/device.h"
#include "launch/metrics.h"
#include "launch/old_schemes.h"
#include "parallel/attention.h"
#include "parallel/policy.h"
#include "parallel/schemes/scheme.h"
#include "parallel/verifier/verifier.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/gather_cores.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {
namespace {

using parallel::Direction;
using runtime::Communicator;
using runtime::ConstTensorView;
using runtime::counted;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Stream;
using runtime::Tensor;

/// What all ranks run, decided and verified before anything is enqueued.
struct Replay {
  AttentionCase input;
  parallel::Expression scheme;  // resolved
  parallel::Layout layout;
  DType dtype;
  DType wire_dtype;
  attention::Scoring scoring;
  std::vector<std::int64_t> area;  // per rank
};

parallel::Shapes shapes_of(const AttentionCase& in, DType dtype,
                           const attention::Scoring& scoring) {
  return {static_cast<int>(in.heads), static_cast<int>(in.kv_heads), in.dim, in.value_dim, dtype,
          scoring.weighting};
}

/// What the options ask for, with what it chooses itself written out.
parallel::Expression choose_scheme(const AttentionOptions& options, const parallel::Shapes& shapes,
                                   DType wire, const attention::HeadMasks& masks,
                                   const parallel::Layout& layout) {
  const parallel::Combination asked{
      parallel::choose_scheme(options.scheme, shapes,
                              wire == DType::float32 ? std::nullopt : std::optional(wire)),
      layout.ranks(),
      shapes.heads,
      shapes.kv_heads,
      layout.kind(),
      parallel::is_causal(masks)};
  parallel::check_legal(asked);
  return parallel::resolved(asked);
}

void verify_schedules(const Replay& replay) {
  const AttentionCase& in = replay.input;
  const parallel::Shapes shapes = shapes_of(in, replay.dtype, replay.scoring);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    parallel::SchemeInputs inputs{in.mask, replay.layout, shapes, direction, {}, replay.scheme};
    if (replay.wire_dtype != DType::float32) inputs.wire_dtype = replay.wire_dtype;
    const parallel::Verdict verdict =
        parallel::verify(parallel::build_schedule(inputs), in.mask, replay.layout);
    if (!verdict.ok()) {
      fail(ExitCode::internal, "the ", parallel::name(direction), " schedule of ",
           replay.scheme.text(), " does not verify: ", parallel::name(verdict.fault), ": ",
           verdict.message);
    }
  }
}

attention::Scoring read_scoring(const AttentionOptions& options, const AttentionCase& input) {
  attention::Scoring scoring;
  scoring.scale = static_cast<float>(input.scale);
  if (options.weighting == "sigmoid") {
    scoring.weighting = attention::Weighting::sigmoid;
  } else if (options.weighting != "softmax") {
    fail(ExitCode::config, "unknown weighting '", options.weighting,
         "'; expected softmax or sigmoid");
  }
  const bool sigmoid = scoring.weighting == attention::Weighting::sigmoid;
  scoring.softcap = static_cast<float>(options.softcap);
  scoring.bias = static_cast<float>(options.bias);
  const bool capped = options.softcap != 0;
  if (capped && (!(scoring.softcap > 0) || !std::isfinite(scoring.softcap) ||
                 !std::isfinite(1 / scoring.softcap))) {
    fail(ExitCode::config, "--softcap ", options.softcap,
         ": expected a number above 0 that float32 holds, its inverse too; or 0 for none");
  }
  if (!std::isfinite(scoring.bias) || (options.bias != 0 && !sigmoid)) {
    fail(ExitCode::config, "--bias ", options.bias,
         ": expected a number that float32 holds, and only with --weighting sigmoid");
  }
  if (sigmoid && !input.sinks.empty()) {
    fail(ExitCode::config,
         "the case has sinks, which a sigmoid has no use for; remove the dataset 'sinks', or use "
         "--weighting softmax");
  }
  return scoring;
}

DType read_dtype(const char* option, const std::string& text) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    if (text == runtime::name(dtype)) return dtype;
  }
  fail(ExitCode::config, option, " ", text, ": expected float32 or bfloat16");
}

Replay make_replay(const AttentionOptions& options, int ranks) {
  const parallel::LayoutKind layout = parallel::layout_from_name(options.layout);
  const DType dtype = read_dtype("--dtype", options.dtype),
              wire = read_dtype("--wire-dtype", options.wire_dtype);
  AttentionCase input = read_attention_case(options.case_path, options.mask);
  const auto tokens = parallel::Layout::make(layout, input.mask, input.batch, ranks);
  const attention::Scoring scoring = read_scoring(options, input);
  check_numbers(options.case_path, input, dtype, scoring);
  const parallel::Expression scheme =
      choose_scheme(options, shapes_of(input, dtype, scoring), wire, input.mask, tokens);
  Replay replay{std::move(input), scheme, tokens, dtype, wire, scoring, {}};
  verify_schedules(replay);
  // Of one head, or of all where their masks differ.
  replay.area = parallel::query_areas(replay.input.mask, replay.layout);
  return replay;
}

/// A tensor's elements on the host; blocks.
std::vector<float> values_of(const Tensor& tensor, const Stream& stream) {
  const auto values = runtime::ops::download<float>(tensor, stream);
  stream.synchronize(runtime::deadline_in(3600));
  return *values;
}

/// One rank's tensors, on its device.
class RankTensors {
 public:
  RankTensors(const Replay& replay, int rank, const Stream& compute)
      : tokens_(replay.layout.tokens_of(rank)), compute_(compute) {}

  /// This rank's rows of a global [tokens, heads, width] array, in `dtype`.
  Tensor upload(const std::vector<float>& global, std::int64_t heads, std::int64_t width,
                DType dtype) {
    const std::int64_t row_elements = heads * width;
    std::vector<float> mine;
    mine.reserve(static_cast<std::size_t>(size() * row_elements));
    for (const std::int64_t token : tokens_) {
      const auto row = global.begin() + token * row_elements;
      mine.insert(mine.end(), row, row + row_elements);
    }
    Tensor rows({size(), heads, width}, DType::float32, compute_);
    runtime::ops::upload(std::move(mine), rows, compute_);
    if (dtype == DType::float32) return rows;
    return rounded(rows, dtype);
  }
  Tensor rounded(const Tensor& values, DType dtype) {
    Tensor copy(values.view().sizes(), dtype, compute_);
    runtime::copy(values, copy, compute_);
    return copy;
  }
  /// The same values on every rank.
  Tensor upload_all(const std::vector<float>& values) {
    Tensor device({static_cast<std::int64_t>(values.size())}, DType::float32, compute_);
    runtime::ops::upload(values, device, compute_);
    return device;
  }
  Tensor make(std::initializer_list<std::int64_t> sizes) {
    return Tensor(sizes, DType::float32, compute_);
  }
  /// The values on the host.
  std::vector<float> download(const Tensor& tensor) { return values_of(tensor, compute_); }
  std::int64_t size() const { return static_cast<std::int64_t>(tokens_.size()); }

 private:
  const std::vector<std::int64_t> tokens_;
  const Stream compute_;
};

/// Rows of all ranks in global order on rank 0; empty elsewhere.
std::vector<float> gather_rows(Communicator& world, const Replay& replay,
                               const std::vector<float>& mine, std::int64_t row_elements,
                               const Stream& stream) {
  const Tensor own({static_cast<std::int64_t>(mine.size())}, DType::float32, stream);
  runtime::ops::upload(mine, own, stream);
  std::vector<Tensor> parts;
  std::vector<runtime::ReceiveMessage> receives;
  if (world.rank() == 0) {
    for (int rank = 0; rank < world.size(); ++rank) {
      parts.emplace_back(
          std::initializer_list<std::int64_t>{replay.layout.rows(rank) * row_elements},
          DType::float32, stream);
      receives.push_back({rank, {parts.back()}});
    }
  }
  world.exchange({{0, {own}}}, std::move(receives), "gather of results", stream);
  stream.synchronize(runtime::deadline_in(3600));
  std::vector<float> global;
  if (world.rank() != 0) return global;
  global.resize(static_cast<std::size_t>(replay.layout.tokens() * row_elements));
  for (int rank = 0; rank < world.size(); ++rank) {
    const std::vector<float> part = values_of(parts[static_cast<std::size_t>(rank)], stream);
    auto from = part.begin();
    for (const std::int64_t token : replay.layout.tokens_of(rank)) {
      std::copy_n(from, row_elements, global.begin() + token * row_elements);
      from += row_elements;
    }
  }
  return global;
}

/// The node of each rank: equal hosts are one, or as `ranks_per_node` says.
std::vector<int> nodes_of_ranks(Communicator& world, const std::string& host, int ranks_per_node) {
  if (ranks_per_node > 0) return parallel::nodes_in_order(world.size(), ranks_per_node);
  std::map<std::string, int> numbers;
  std::vector<int> nodes;
  for (const std::string& other :
       runtime::gather_texts(world, host, Stream::cpu("hosts"), runtime::deadline_in(3600)))
    nodes.push_back(numbers.emplace(other, static_cast<int>(numbers.size())).first->second);
  return nodes;
}

void print_summary(const AttentionOptions& options, const std::string& scheme,
                   const AttentionResult& result) {
  parallel::LinkBytes sum;
  for (const parallel::LinkBytes& bytes : result.link_bytes) {
    sum.within_nodes += bytes.within_nodes;
    sum.between_nodes += bytes.between_nodes;
  }
  const int nodes = *std::ranges::max_element(result.nodes) + 1;
  fmt::print("{} over {}, mask {}, {} on {}: {} sent within nodes, {} between; {:.4f} s\n", scheme,
             options.layout, options.mask.name, counted(std::ssize(result.nodes), "rank"),
             counted(nodes, "node"), counted(sum.within_nodes, "byte"), grouped(sum.between_nodes),
             result.seconds);
}

/// What rank 0 leaves behind.
void tell(const AttentionOptions& options, const runtime::OutputFile& output, const Replay& replay,
          const AttentionResult& result) {
  const std::string scheme = replay.scheme.text();
  const std::string wrong = check_results(replay.input, result);
  write_attention_result(output, replay.input, result, scheme, options.layout);
  print_summary(options, scheme, result);
  if (!wrong.empty()) fmt::print("not finite: {}\n", wrong);
}

/// Runs one rank; the result is complete on rank 0.
AttentionResult run_rank(const Replay& replay, std::vector<int> nodes, Communicator& world,
                         std::unique_ptr<Communicator> context, const Stream& compute) {
  const AttentionCase& in = replay.input;
  const attention::Scoring& scoring = replay.scoring;
  const bool with_backward = in.has_dout, with_sinks = !in.sinks.empty(),
             softmax = scoring.weighting == attention::Weighting::softmax;
  RankTensors tensors(replay, world.rank(), compute);
  const std::int64_t n = tensors.size();
  const Tensor q = tensors.upload(in.q, in.heads, in.dim, replay.dtype);
  const Tensor k = tensors.upload(in.k, in.kv_heads, in.dim, replay.dtype);
  const Tensor v = tensors.upload(in.v, in.kv_heads, in.value_dim, replay.dtype);
  const Tensor out = tensors.make({n, in.heads, in.value_dim});
  Tensor lse, sinks, dout, kept, delta, dq, dk, dv, dsinks;
  if (softmax) lse = tensors.make({n, in.heads, 2});
  if (with_sinks) sinks = tensors.upload_all(in.sinks);
  if (with_backward) {
    dout = tensors.upload(in.dout, in.heads, in.value_dim, replay.dtype);
    if (softmax) delta = tensors.make({n, in.heads});
    if (with_sinks) dsinks = tensors.make({in.heads});
    dq = tensors.make({n, in.heads, in.dim});
    dk = tensors.make({n, in.kv_heads, in.dim});
    dv = tensors.make({n, in.kv_heads, in.value_dim});
  }
  parallel::Attention attention({replay.scheme, replay.wire_dtype}, std::move(context), compute);
  const auto batch = attention.batch(in.mask, replay.layout);

  const Stream host = Stream::cpu("results");
  compute.synchronize(runtime::deadline_in(3600));  // the inputs are in place before the clock runs
  world.barrier(host);
  host.synchronize(runtime::deadline_in(3600));
  const auto begin = runtime::Clock::now();
  auto forward = attention.forward(*batch, q, k, v, scoring, out, lse);
  forward->finish();
  if (with_sinks) attention::apply_sinks(out, lse, sinks, compute);
  std::unique_ptr<parallel::Execution> backward;
  if (with_backward) {
    // As in training, which keeps the output in the activation dtype and takes delta from that.
    ConstTensorView attended = out;
    if (replay.dtype != DType::float32) {
      kept = tensors.rounded(out, replay.dtype);
      attended = kept;
    }
    if (softmax) attention::block_delta(attended, dout, delta, compute);
    backward = attention.backward(*batch, {q, k, v, dout, lse, delta}, scoring, dq, dk, dv);
    backward->finish();
    if (with_sinks) attention::sinks_backward(lse, delta, sinks, dsinks, compute);
  }
  compute.synchronize(runtime::deadline_in(3600));
  const double seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();

  AttentionResult result;
  const auto collect = [&](const Tensor& tensor, std::int64_t row_elements) {
    return gather_rows(world, replay, tensors.download(tensor), row_elements, host);
  };
  result.out = collect(out, in.heads * in.value_dim);
  if (softmax) {
    const std::vector<float> parts = collect(lse, 2 * in.heads);
    for (std::size_t i = 0; i < parts.size(); i += 2) result.lse.push_back(parts[i]);
  }
  if (with_backward) {
    result.dq = collect(dq, in.heads * in.dim);
    result.dk = collect(dk, in.kv_heads * in.dim);
    result.dv = collect(dv, in.kv_heads * in.value_dim);
  }
  if (with_backward && with_sinks) {  // each rank saw its own rows
    const std::vector<float> mine = tensors.download(dsinks);
    result.dsinks.assign(in.sinks.size(), 0);
    for (const auto& rank :
         runtime::gather_numbers(world, std::vector<double>(mine.begin(), mine.end()), host,
                                 runtime::deadline_in(3600))) {
      for (std::size_t head = 0; head < rank.size(); ++head)
        result.dsinks[head] += static_cast<float>(rank[head]);
    }
  }
  const parallel::LinkBytes links = parallel::link_bytes(attention.sent_to(), world.rank(), nodes);
  for (const auto& rank : runtime::gather_numbers(
           world,
           {static_cast<double>(attention.sent_bytes()), static_cast<double>(links.within_nodes),
            static_cast<double>(links.between_nodes), seconds},
           host, runtime::deadline_in(3600))) {
    result.sent_bytes.push_back(static_cast<std::int64_t>(rank[0]));
    result.link_bytes.push_back(
        {static_cast<std::int64_t>(rank[1]), static_cast<std::int64_t>(rank[2])});
    result.seconds = std::max(result.seconds, rank[3]);
  }
  result.nodes = std::move(nodes);
  result.area = replay.area;
  return result;
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

void check_old_options(const AttentionOptions& options) {
  OldSchemeOptions old = options.old_options;
  for (const char* name : OldSchemeOptions::kNames) {
    const auto& given = old.of(name);
    if (!given) continue;
    const auto ranks =
        options.ranks > 0 ? std::optional<std::int64_t>(options.ranks) : std::nullopt;
    const auto scheme = replace_old_options(options.scheme, old, ranks);
    fail(ExitCode::usage, "--", name, " ", *given, ": a scheme is an expression now; ",
         scheme ? fmt::format("give --scheme '{}' instead", *scheme)
                : "give, for example, --scheme 'double_ring(outer=2, inner=4)' or --scheme "
                  "'usp(heads=4, around=double_ring(backward=burst))'");
  }
}

void check_options(const AttentionOptions& options) {
  check_old_options(options);
  parallel::choose_scheme(options.scheme, {}, {});  // whether there is such a scheme
  if (options.device != "cpu" && options.device != "cuda") {
    fail(ExitCode::config, "unknown device '", options.device, "'; expected cpu or cuda");
  }
  const std::string& communicator = options.communicator;
  if (communicator != "mpi" && communicator != "loopback" && communicator != "nccl") {
    fail(ExitCode::config, "unknown communicator '", communicator,
         "'; expected mpi, loopback or nccl");
  }
  if (!(options.timeout_seconds > 0)) {
    fail(ExitCode::config, "--timeout-seconds ", options.timeout_seconds,
         ": expected a number above 0");
  }
  if (communicator == "nccl" && options.device == "cpu") {
    fail(ExitCode::config, "nccl moves device memory; use --device cuda, or --communicator mpi");
  }
}

int run_loopback_ranks(const AttentionOptions& options, const runtime::OutputFile& output) {
  const int ranks = std::max(1, options.ranks);
  const Replay replay = make_replay(options, ranks);
  runtime::run_loopback(
      ranks, {.timeout_seconds = options.timeout_seconds, .recorders = {}},
      [&](std::unique_ptr<Communicator> world) {
        const Stream compute = compute_stream(options, *world, "", world->rank()).stream;
        auto context = world->split(0, world->rank(), "context");
        const int per_node = options.ranks_per_node > 0 ? options.ranks_per_node : ranks;
        const AttentionResult result = run_rank(replay, parallel::nodes_in_order(ranks, per_node),
                                                *world, std::move(context), compute);
        if (world->rank() == 0) tell(options, output, replay, result);
      });
  return 0;
}

int run_process(const AttentionOptions& options, const runtime::OutputFile& output) {
  runtime::MpiSession session({.timeout_seconds = options.timeout_seconds});
  const runtime::MpiPlace place{session.rank(), session.size(), session.local_rank(),
                                session.local_size()};
  runtime::check_launcher(runtime::process_environment(), place);
  if (options.ranks != 0)
    runtime::check_grid_size(place, options.ranks, "--ranks " + std::to_string(options.ranks));
  const Replay replay = make_replay(options, session.size());
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
    const AttentionResult result =
        run_rank(replay, nodes_of_ranks(*world, session.host_name(), options.ranks_per_node),
                 *world, std::move(context), compute);
    if (session.rank() == 0) tell(options, output, replay, result);
  }
  session.close();
  return 0;
}

}  // namespace

int run_attention(const AttentionOptions& options) {
  check_options(options);
  const runtime::OutputFile output =
      result_file(options.output_path, options.case_path,
                  options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  return options.communicator == "loopback" ? run_loopback_ranks(options, output)
                                            : run_process(options, output);
}

}  // namespace longhaul::launch

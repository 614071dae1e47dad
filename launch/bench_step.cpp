// `longhaul bench step`: optimizer steps of a configuration's model over random tokens, timed.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "launch/attention_axis.h"
#include "launch/bench.h"
#include "launch/bench_json_impl.h"
#include "launch/config.h"
#include "launch/device.h"
#include "launch/longest.h"
#include "launch/memory.h"
#include "launch/model.h"
#include "launch/place.h"
#include "launch/random_sequences.h"
#include "launch/row_rules.h"
#include "launch/run_header.h"
#include "launch/schemes.h"
#include "launch/step_parts_impl.h"
#include "launch/trainer.h"
#include "runtime/build_info.h"
#include "runtime/cgroup.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/host_name.h"
#include "runtime/io/output_file.h"
#include "runtime/size_text.h"

namespace longhaul::launch {
namespace {

using runtime::Communicator;
using runtime::counted;
using runtime::ExitCode;
using runtime::fail;
using runtime::grouped;
using runtime::size_text;

/// What all ranks time.
struct Bench {
  BenchStepOptions options;
  TrainConfig config;  ///< of a resolved grid
  std::int64_t vocabulary = 0;

  std::shared_ptr<const runtime::SequenceSource> sequences() const {
    return std::make_shared<const RandomSequences>(vocabulary, config.training.seq_len,
                                                   options.document_tokens, row_rules(config.data));
  }
};

/// The same with sequences of `tokens`, one pass a step.
Bench with_length(const Bench& bench, std::int64_t tokens) {
  Bench other = bench;
  TrainingConfig& training = other.config.training;
  training.seq_len = tokens;
  training.tokens_per_step = tokens * training.micro_batch_size * training.interleave *
                             other.config.parallelism.data_parallel_replicate_degree;
  return other;
}

/// What one length took. Times and memory are the largest over ranks.
struct Figures {
  std::int64_t tokens = 0;  ///< of a step
  Spread step;
  std::optional<double> forward_seconds = {};  ///< of all its passes alone
  double flops = 0;                            ///< model FLOPs of a step
  PeakFlops peak;
  double loss = 0;
  std::int64_t memory_bytes = 0, estimated_bytes = 0;
  std::optional<StepParts> parts = {};  ///< of rank 0's threads, on the CPU
  std::string estimate_text, cores_text, devices_text, lending_text;
  std::int64_t parameters = 0;

  double tokens_per_second() const { return static_cast<double>(tokens) / step.median; }
  double mfu() const { return flops / step.median / peak.flops; }
  double over_estimate() const {
    return static_cast<double>(memory_bytes) / static_cast<double>(estimated_bytes) - 1;
  }
};

/// Element by element the largest over ranks.
std::vector<double> largest_over_ranks(Communicator& world, const std::vector<double>& own) {
  const runtime::Stream stream = runtime::Stream::cpu("figures");
  std::vector<double> largest = own;
  for (const auto& rank : runtime::gather_numbers(world, own, stream, runtime::deadline_in(3600))) {
    for (std::size_t i = 0; i < rank.size(); ++i) largest[i] = std::max(largest[i], rank[i]);
  }
  return largest;
}

/// Of this rank: the passes of a step, forward only, after one that warms up.
double forward_seconds(Trainer& trainer, const Bench& bench) {
  Loader loader(trainer.loader_inputs(bench.sequences()));
  double seconds = 0;
  for (const bool counts : {false, true}) {
    for (LocalBatch& batch : loader.take({trainer.completed_steps(), 0})) {
      const auto begin = runtime::Clock::now();
      trainer.evaluate(std::move(batch));
      const std::chrono::duration<double> passed = runtime::Clock::now() - begin;
      if (counts) seconds += passed.count();
    }
  }
  return seconds;
}

/// What a step's attention calls do on all ranks, recomputation included: of every pair the 4 D
/// forward and 10 D backward whose model FLOPs count 12 D, and forward again.
double attention_flops(const Trainer& trainer, const TrainConfig& config, const StepResult& step) {
  const models::Model& model = trainer.model();
  const std::vector<std::int64_t> nothing(step.areas.size(), 0);
  const double counted = model.flops(config.training.tokens_per_step, step.areas) -
                         model.flops(config.training.tokens_per_step, nothing);
  return counted / 12 * (config.activation_checkpoint.mode == "full" ? 18 : 14);
}

/// Collective.
Figures measure(const Bench& bench, Communicator& world, const Location& location) {
  const TrainConfig& config = bench.config;
  Place place = place_rank(config, world, location);
  const auto sequences = bench.sequences();
  const MemoryQuestion question{config, bench.vocabulary, *sequences, place.threads, place.device};
  Figures figures;
  figures.cores_text = place.cores_text;
  figures.lending_text = place.lending;
  if (!place.devices.empty()) figures.devices_text = binding_text(place.devices);
  figures.estimate_text = check_memory(question, world, place);

  TrainerInputs inputs;
  inputs.config = config;
  inputs.vocab_size = bench.vocabulary;
  inputs.sequences = sequences;
  inputs.threads = place.threads;
  inputs.device = place.device;
  inputs.nccl = nccl_options(config, place);
  Trainer trainer(std::move(inputs), world);
  trainer.initialise();
  figures.parameters = trainer.parameters();
  figures.peak = measure_peak_flops(world, place, config.training.dtype, trainer.compute(),
                                    runtime::Stream::cpu("host"));

  const auto timed_step = [&] {
    StepResult result = trainer.step();
    figures.memory_bytes = std::max(figures.memory_bytes, result.memory_bytes);
    return result;
  };
  for (int step = 0; step < bench.options.warm_up; ++step) timed_step();
  std::optional<StepPartsClock> parts;
  if (place.devices.empty()) parts.emplace(trainer.compute(), config.training.dtype, place.threads);
  std::vector<double> own;
  StepResult last;
  for (int step = 0; step < bench.options.steps; ++step) {
    last = timed_step();
    own.push_back(last.seconds);
  }
  if (parts) {
    figures.parts = parts->stop(own, attention_flops(trainer, config, last) / world.size());
  }
  figures.step = spread_of(largest_over_ranks(world, own));
  if (!bench.options.find_longest)  // there a step takes minutes
    figures.forward_seconds = largest_over_ranks(world, {forward_seconds(trainer, bench)})[0];
  const auto estimated = static_cast<double>(estimate_memory(question, world.rank()).total());
  figures.estimated_bytes = static_cast<std::int64_t>(largest_over_ranks(world, {estimated})[0]);
  figures.tokens = config.training.tokens_per_step;
  figures.flops = trainer.model().flops(figures.tokens, last.areas);
  figures.loss = last.loss;
  return figures;
}

/// What a rank may take. Collective.
std::int64_t available_bytes(const Bench& bench, Communicator& world, const Location& location) {
  if (bench.options.memory_gib)
    return static_cast<std::int64_t>(*bench.options.memory_gib * static_cast<double>(1 << 30));
  const Place place = place_rank(bench.config, world, location);
  const std::int64_t own = place.devices.empty()
                               ? runtime::node_memory_bytes() / place.cores.ranks
                               : runtime::cuda_device_memory(place.device.index).free_bytes /
                                     std::ssize(ranks_beside(place.devices, world.rank()));
  return -static_cast<std::int64_t>(largest_over_ranks(world, {-static_cast<double>(own)})[0]);
}

/// The longest sequence whose estimate fits every rank. Collective: all find the same.
std::int64_t longest_by_estimate(const Bench& bench, Communicator& world,
                                 const Location& location) {
  const std::int64_t available = available_bytes(bench, world, location);
  const Place place = place_rank(bench.config, world, location);
  const std::int64_t tokens = longest_fitting(bench.options.unit, available, [&](std::int64_t of) {
    const Bench longer = with_length(bench, of);
    const auto sequences = longer.sequences();
    const MemoryQuestion question{longer.config, bench.vocabulary, *sequences, place.threads,
                                  place.device};
    const double own = static_cast<double>(estimate_memory(question, world.rank()).total());
    return static_cast<std::int64_t>(largest_over_ranks(world, {own})[0]);
  });
  if (tokens == 0) {
    fail(ExitCode::memory, "no sequence fits: one of ", counted(bench.options.unit, "token"),
         " needs more than the ", size_text(available), " that a rank may take");
  }
  if (world.rank() == 0) {
    fmt::print("longest  {} a sequence by the estimate, in {} a rank\n", counted(tokens, "token"),
               size_text(available));
  }
  return tokens;
}

/// The longest sequence that runs: where the estimate's did not, the next shorter ones are tried,
/// by a single rank, since others do not survive its running out of memory.
Figures measure_longest(Bench& bench, Communicator& world, const Location& location) {
  const std::int64_t unit = bench.options.unit;
  std::int64_t tokens = longest_by_estimate(bench, world, location);
  for (;;) {
    bench = with_length(bench, tokens);
    try {
      return measure(bench, world, location);
    } catch (const runtime::Error& error) {
      if (error.code() != ExitCode::memory || world.size() > 1 || tokens <= unit) throw;
      fmt::print("longest  {} did not run: {}\n", grouped(tokens), error.what());
    }
    tokens = std::max(unit, tokens / unit * 15 / 16 * unit);
  }
}

void print(const Bench& bench, const Figures& f) {
  const TrainConfig& config = bench.config;
  const TrainingConfig& training = config.training;
  fmt::print("{}\n", runtime::version_line());
  fmt::print("model    {}, {} parameters, {}\n", config.model.architecture, grouped(f.parameters),
             runtime::name(training.dtype));
  fmt::print("grid     data {} x context {}, attention {} over {} layout, mask {}\n",
             config.parallelism.data_parallel_replicate_degree,
             config.parallelism.context_parallel_degree, schemes_text(config),
             config.parallelism.context_parallel_layout, mask_text(config.data));
  if (const auto servers = servers_text(config)) fmt::print("servers  {}\n", *servers);
  if (const auto linear = linear_text(config)) fmt::print("linear   {}\n", *linear);
  fmt::print("batch    {} of random text a step: sequences of {}, {} each\n",
             counted(f.tokens, "token"), grouped(training.seq_len),
             bench.options.document_tokens > 0
                 ? "documents of " + grouped(bench.options.document_tokens)
                 : "one document");
  fmt::print("cores    {}\n", f.cores_text);
  if (!f.lending_text.empty()) fmt::print("lending  {}\n", f.lending_text);
  if (!f.devices_text.empty()) fmt::print("devices  {}\n", f.devices_text);
  fmt::print("memory   {}\n", f.estimate_text);
  fmt::print(
      "step     {:.4f} s (median of {} after {}; quartiles {:.4f} to {:.4f}, least {:.4f})\n",
      f.step.median, f.step.count, counted(bench.options.warm_up, "warm-up"), f.step.lower,
      f.step.upper, f.step.least);
  if (f.forward_seconds) {
    fmt::print(
        "forward  {:.4f} s alone, {:.1f}% of the step; the rest is backward and the update\n",
        *f.forward_seconds, 100 * *f.forward_seconds / f.step.median);
  }
  fmt::print("speed    {} tok/s, {:.4g} model TFLOP/s, mfu {:.1f}% of {:.4g}\n",
             grouped(std::llround(f.tokens_per_second())), f.flops / f.step.median / 1e12,
             100 * f.mfu(), f.peak.flops / 1e12);
  fmt::print("mfu      {}; over {}\n", kFlopConvention, f.peak.convention);
  if (f.parts) fmt::print("{}", text_of(*f.parts));
  fmt::print("peak     {} a rank, {:+.1f}% of the estimated {}\n", size_text(f.memory_bytes),
             100 * f.over_estimate(), size_text(f.estimated_bytes));
  fmt::print("loss     {:.4f} after {}\n", f.loss,
             counted(bench.options.warm_up + bench.options.steps, "step"));
}

std::string json_text(const Bench& bench, const Figures& f) {
  Json json{{"record", "bench step"},
            {"build", runtime::version_line()},
            {"config", Json::parse(to_json(bench.config))},
            {"parameters", f.parameters},
            {"seq_len", bench.config.training.seq_len},
            {"tokens", f.tokens},
            {"seconds", json_of(f.step)},
            {"tokens_per_second", f.tokens_per_second()},
            {"flops", f.flops},
            {"flop_convention", kFlopConvention},
            {"peak_flops", f.peak.flops},
            {"peak_convention", f.peak.convention},
            {"devices", f.devices_text},
            {"mfu", f.mfu()},
            {"memory_bytes", f.memory_bytes},
            {"estimated_bytes", f.estimated_bytes},
            {"loss", f.loss}};
  if (f.forward_seconds) json["forward_seconds"] = *f.forward_seconds;
  if (f.parts) json["parts"] = json_of(*f.parts);
  return json.dump(2) + "\n";
}

/// One rank, from start to end.
void run_rank(Bench bench, Communicator& world, const Location& location,
              const runtime::OutputFile* json_file) {
  const Figures figures = bench.options.find_longest ? measure_longest(bench, world, location)
                                                     : measure(bench, world, location);
  if (world.rank() != 0) return;
  print(bench, figures);
  if (json_file != nullptr) write_output(*json_file, json_text(bench, figures));
}

void run_loopback_ranks(const Bench& bench, const runtime::OutputFile* json_file) {
  const int ranks = attention_axis(bench.config).world_size();
  runtime::LoopbackOptions options;
  options.timeout_seconds = bench.config.comm.timeout_seconds;
  runtime::run_loopback(ranks, options, [&](std::unique_ptr<Communicator> world) {
    run_rank(bench, *world, {world->rank(), runtime::host_name(), "loopback", nullptr}, json_file);
  });
}

void run_processes(TrainDraft& draft, Bench bench, const runtime::OutputFile* json_file) {
  runtime::MpiSession session(mpi_options(bench.config));
  runtime::check_launcher(
      runtime::process_environment(),
      {session.rank(), session.size(), session.local_rank(), session.local_size()});
  const std::int64_t context = resolve_grid(bench.config, session.size()).context;
  draft.config.parallelism.context_parallel_degree = context;
  check_schemes(draft);  // what depends on the number of ranks
  draft.check();
  bench.config.parallelism.context_parallel_degree = context;
  {
    const std::unique_ptr<Communicator> world = session.world();
    const Location location = location_of(session, bench.config, session.mpi_version(), nullptr);
    run_rank(std::move(bench), *world, location, json_file);
  }
  session.close();
}

/// What trains, without all that a benchmark leaves alone: it writes nothing, and its learning rate
/// may be any step's.
Bench bench_of(const BenchStepOptions& options, const TrainDraft& draft) {
  Bench bench{options, draft.config, draft.config.model.vocab_size.value_or(0)};
  bench.config.checkpoint.enable = bench.config.validation.enable = false;
  bench.config.training.steps =
      std::max<std::int64_t>(bench.config.training.steps, options.warm_up + options.steps);
  return bench;
}

}  // namespace

int run_bench_step(const BenchStepOptions& options) {
  TrainDraft draft =
      load_config(options.config_path, options.overrides, std::nullopt, NamedFiles::unread);
  if (!draft.config.model.vocab_size) {
    fail(ExitCode::config, options.config_path,
         ": model.vocab_size is not given, and no corpus is "
         "read here that would say it; add --set model.vocab_size=32000, for example");
  }
  if (draft.config.debug.pretend) {
    fail(ExitCode::config, "debug.pretend = ", runtime::quote_toml(*draft.config.debug.pretend),
         ": this measures steps, and with it attention computes nothing; leave it out");
  }
  std::optional<runtime::OutputFile> json_file;
  if (!options.json_path.empty()) {
    json_file.emplace(options.json_path,
                      options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const runtime::OutputFile* json = json_file ? &*json_file : nullptr;
  const Bench bench = bench_of(options, draft);
  if (draft.config.comm.backend == "loopback") {
    run_loopback_ranks(bench, json);
  } else {
    run_processes(draft, bench, json);
  }
  return 0;
}

}  // namespace longhaul::launch

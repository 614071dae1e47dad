#include "launch/train.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <set>
#include <sstream>

#include "launch/config.h"
#include "launch/metrics.h"
#include "launch/model.h"
#include "launch/schemes.h"
#include "launch/trainer.h"
#include "runtime/build_info.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/peak.h"
#include "runtime/signals.h"

namespace longhaul::launch {
namespace {

using runtime::Communicator;
using runtime::counted;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;

std::string flight_folder(const TrainConfig& config) { return config.job.output_dir + "/flight"; }

/// Where this rank runs.
struct Place {
  int local_rank = 0, local_size = 1;
  std::string host;
  std::string communicator;  ///< see RunHeader
};

int threads_of(const TrainConfig& config, const Place& place) {
  return config.debug.threads > 0 ? static_cast<int>(config.debug.threads)
                                  : runtime::threads_per_rank(place.local_size);
}

/// fp32 FMA rate of the cores that all ranks may use, measured by one rank of each host while the
/// others wait.
double measure_peak_flops(Communicator& world, const Place& place, const runtime::Stream& stream) {
  double host = 0;
  if (place.local_rank == 0) {
    const int own = runtime::available_cores();
    host = runtime::measure_fma_flops(own, 0.2) * runtime::host_cores(place.local_size) / own;
  }
  double total = 0;
  for (const auto& rank :
       runtime::gather_numbers(world, {host}, stream, runtime::deadline_in(3600))) {
    total += rank[0];
  }
  return total;
}

/// The corpus and what the configuration makes of it; a contradiction shows before anything is
/// written.
struct TrainingData {
  explicit TrainingData(TrainDraft& draft)
      : corpus(open_corpus(draft)),
        vocab_size(model_vocabulary(draft.config, corpus.info())),
        sequences(corpus, draft.config.training.seq_len,
                  static_cast<std::uint64_t>(draft.config.debug.seed)) {}
  TrainingData(const TrainingData&) = delete;  // sequences refers to corpus
  TrainingData& operator=(const TrainingData&) = delete;

  const runtime::Corpus corpus;
  const std::int64_t vocab_size;
  const runtime::Sequences sequences;
};

RunHeader run_header(const TrainConfig& config, const runtime::Corpus& corpus,
                     const Trainer& trainer) {
  RunHeader header;
  header.config = config;
  header.grid.data = config.parallelism.data_parallel_replicate_degree;
  header.grid.context = config.parallelism.context_parallel_degree;
  header.parameters = trainer.parameters();
  header.accumulation_steps = batch_plan(config).accumulation_steps;
  header.corpus_digest = corpus.digest();
  header.corpus_tokens = corpus.info().tokens;
  header.vocabulary_size = corpus.info().vocabulary_size;
  for (const SchemeChange& change : resolved_schemes(config))
    header.schemes.push_back({change.step, change.scheme.text()});
  header.unigram_entropy = corpus.info().unigram_entropy;
  header.flop_convention =
      "model FLOPs: 6 per matrix weight and token, and 12 D per head and visible (query, key) "
      "pair; "
      "masked pairs, recomputation and the embedding lookup count nothing";
  return header;
}

void print_start(const RunHeader& header, const TrainConfig& config, std::int64_t resumed_step) {
  std::printf("%s\n", runtime::version_line().c_str());
  std::printf("model    %s, %s parameters, %s\n", config.model.architecture.c_str(),
              grouped(header.parameters).c_str(), runtime::name(config.training.dtype));
  if (!config.model.layer_types.empty())
    std::printf("layers   %s\n", layers_text(layer_masks(config.model).kinds).c_str());
  const std::string entropy =
      header.unigram_entropy
          ? fmt::format("unigram entropy {:.4f} nats", *header.unigram_entropy)
          : fmt::format("unigram entropy not stored (longhaul inspect --add-entropy {} stores it)",
                        config.data.corpus);
  std::printf("corpus   %s, %s tokens, vocabulary %s, %s\n", config.data.corpus.c_str(),
              grouped(header.corpus_tokens).c_str(), grouped(header.vocabulary_size).c_str(),
              entropy.c_str());
  std::printf("grid     data %ld x context %ld%s, attention %s over %s layout, mask %s\n",
              header.grid.data, header.grid.context,
              config.parallelism.shard == "optimizer" ? ", optimizer state sharded" : "",
              schemes_text(config).c_str(), config.parallelism.context_parallel_layout.c_str(),
              mask_text(config.data).c_str());
  const std::set<std::string> hosts(header.hosts.begin(), header.hosts.end());
  std::printf("ranks    %zu on %s, over %s\n", header.hosts.size(),
              counted(std::ssize(hosts), "host").c_str(),
              header.communicator.substr(0, header.communicator.find(',')).c_str());
  std::printf("batch    %s a step: sequences of %s, %s of %ld on each data rank%s\n",
              counted(config.training.tokens_per_step, "token").c_str(),
              grouped(config.training.seq_len).c_str(),
              counted(header.accumulation_steps, "pass").c_str(), config.training.micro_batch_size,
              config.training.interleave > 1 ? ", two together" : "");
  if (resumed_step >= config.training.steps) {
    std::printf(
        "done     all steps of this run, %ld, are in its checkpoint of step %ld; nothing to do\n",
        config.training.steps, resumed_step);
    return;
  }
  if (resumed_step > 0) std::printf("resumed  from the checkpoint of step %ld\n", resumed_step);
}

/// What rank 0 tells people and metrics.jsonl.
class Reporter {
 public:
  Reporter(const RunHeader& header, const TrainConfig& config, std::int64_t resumed_step)
      : config_(config),
        peak_flops_(header.peak_flops),
        writer_(config.job.output_dir + "/metrics.jsonl", header, resumed_step) {
    print_start(header, config, resumed_step);
  }

  void step(const StepResult& result, const Trainer& trainer, std::int64_t sequences_per_epoch) {
    const std::int64_t tokens = config_.training.tokens_per_step;
    StepMetrics metrics;
    metrics.step = trainer.completed_steps();
    metrics.loss = result.loss;
    metrics.grad_norm = result.grad_norm;
    metrics.learning_rate = result.learning_rate;
    metrics.tokens = tokens;
    metrics.labels = result.labels;
    metrics.seconds = result.seconds;
    metrics.tokens_per_second = static_cast<double>(tokens) / result.seconds;
    metrics.mfu = trainer.model().flops(tokens, result.areas) / result.seconds / peak_flops_;
    metrics.memory_bytes = result.memory_bytes;
    metrics.comm_seconds = result.comm_seconds;
    metrics.epoch = (trainer.cursor() - 1) / sequences_per_epoch;
    metrics.cursor = trainer.cursor();
    metrics.attention_area = result.area;
    writer_.write(metrics);
    seconds_ += result.seconds;
    ++steps_;
    const bool last = metrics.step == config_.training.steps;
    if (metrics.step % config_.metrics.log_freq != 0 && !last && steps_ != 1) return;
    ConsoleContext context;
    context.steps = config_.training.steps;
    context.memory_total_bytes = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    context.seconds_left =
        seconds_ / static_cast<double>(steps_) * static_cast<double>(context.steps - metrics.step);
    std::printf("%s\n", console_line(metrics, context).c_str());
    std::fflush(stdout);
  }

 private:
  const TrainConfig config_;
  const double peak_flops_;
  MetricsWriter writer_;
  double seconds_ = 0;
  std::int64_t steps_ = 0;
};

/// Initialises or loads; returns the step that the run goes on from.
std::int64_t resume(Trainer& trainer, const TrainConfig& config, Communicator& world,
                    const runtime::Stream& stream) {
  trainer.initialise();
  if (!config.checkpoint.enable) return 0;
  const std::string folder = checkpoint_folder(config);
  const runtime::WordOrInteger& wanted = config.checkpoint.resume;
  if (wanted.word == "auto") {
    if (const auto newest = runtime::Checkpoint::open_newest(folder, world, stream)) {
      trainer.load(*newest);
    }
    return trainer.completed_steps();
  }
  if (wanted.word.empty()) {
    trainer.load(runtime::Checkpoint::open(folder, wanted.integer, world, stream));
  }
  if (world.rank() == 0) {
    const auto aside = runtime::set_aside_newer_checkpoints(folder, trainer.completed_steps());
    if (!aside.empty()) {
      std::printf("later checkpoints of an earlier run are now in %s\n", aside.c_str());
    }
  }
  world.barrier(stream);
  stream.synchronize(runtime::deadline_in(3600));
  return trainer.completed_steps();
}

const char* stop_hint(const TrainConfig& config) {
  if (!config.checkpoint.enable) return "checkpoint.enable is false, so nothing was saved";
  return config.checkpoint.resume.word == "auto"
             ? "start the same command again to go on"
             : "start it again with checkpoint.resume = \"auto\" to go on";
}

/// The loop of one rank.
int train_rank(const TrainConfig& config, Communicator& world, const Place& place, Trainer& trainer,
               const TrainingData& data, runtime::FlightRecorder* recorder) {
  const runtime::Stream stream = runtime::Stream::cpu("host");
  const auto phase = [&](const char* name) {
    if (recorder != nullptr) recorder->set_phase(name);
  };
  phase("resume");
  const std::int64_t resumed_step = resume(trainer, config, world, stream);

  RunHeader header = run_header(config, data.corpus, trainer);
  header.peak_flops = measure_peak_flops(world, place, stream);
  header.communicator = place.communicator;
  header.hosts = runtime::gather_texts(world, place.host, stream, runtime::deadline_in(3600));
  std::unique_ptr<Reporter> reporter;
  if (world.rank() == 0) reporter = std::make_unique<Reporter>(header, config, resumed_step);

  const std::string checkpoints = checkpoint_folder(config);
  while (trainer.completed_steps() < config.training.steps) {
    phase("training");
    const StepResult result = trainer.step(runtime::signals::requested() != 0);
    if (reporter) reporter->step(result, trainer, data.sequences.per_epoch());

    const std::int64_t step = trainer.completed_steps();
    const bool last = step == config.training.steps;
    const bool due = last || result.stop_requested || step % config.checkpoint.interval == 0;
    if (config.checkpoint.enable && due) {
      phase("checkpoint");
      trainer.save(checkpoints, config.checkpoint.keep_latest_k);
    }
    if (result.stop_requested && !last) {
      if (reporter)
        std::printf("stopped  after step %ld at a signal's request; %s\n", step, stop_hint(config));
      if (config.checkpoint.enable) return static_cast<int>(ExitCode::preempted);
      // 75 promises a checkpoint. Without one the job ends as the signal would have ended it.
      const int signal = runtime::signals::requested();
      return 128 + (signal != 0 ? signal : SIGUSR1);
    }
  }
  return static_cast<int>(ExitCode::done);
}

/// What all ranks must have in common: key by key, so that a difference names itself.
std::vector<runtime::NamedDigest> common_ground(const TrainConfig& config,
                                                const runtime::Corpus& corpus) {
  std::vector<runtime::NamedDigest> entries = {{"build", runtime::build_digest()},
                                               {"corpus", corpus.digest()}};
  std::istringstream lines(to_toml(config));
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find(" = ");
    if (line.starts_with('[')) {
      section = line.substr(1, line.size() - 2);
    } else if (equals != std::string::npos) {
      entries.push_back(
          {"config " + section + "." + line.substr(0, equals), line.substr(equals + 3)});
    }
  }
  return entries;
}

void check_common_ground(const TrainConfig& config, const TrainingData& data, Communicator& world) {
  runtime::check_agreement(world, common_ground(config, data.corpus),
                           runtime::Stream::cpu("start"));
}

/// Checks that all ranks started with the same, and makes this one's trainer.
int start_rank(const TrainConfig& config, const std::shared_ptr<const TrainingData>& data,
               Communicator& world, const Place& place, runtime::FlightRecorder* recorder,
               std::unique_ptr<Trainer>& trainer) {
  check_common_ground(config, *data, world);
  TrainerInputs inputs;
  inputs.config = config;
  inputs.vocab_size = data->vocab_size;
  inputs.sequences = {data, &data->sequences};  // a trainer that is left behind goes on reading
  inputs.corpus_digest = data->corpus.digest();
  inputs.threads = threads_of(config, place);
  inputs.recorder = recorder;
  trainer = std::make_unique<Trainer>(std::move(inputs), world);
  return train_rank(config, world, place, *trainer, *data, recorder);
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

int train_loopback(const TrainConfig& config, const std::shared_ptr<const TrainingData>& data) {
  const auto ranks = static_cast<int>(config.parallelism.context_parallel_degree *
                                      config.parallelism.data_parallel_replicate_degree);
  const int started = runtime::claimed_place(runtime::process_environment()).size;
  if (started > 1) {
    fail(ExitCode::launch, "comm.backend = \"loopback\" runs ", counted(ranks, "rank"),
         " in one process, but the launcher started ", started,
         "; start it without mpirun, or set comm.backend = \"mpi\"");
  }
  std::vector<std::unique_ptr<runtime::FlightRecorder>> recorders;
  runtime::LoopbackOptions options;
  options.timeout_seconds = config.comm.timeout_seconds;
  for (int rank = 0; rank < ranks; ++rank) {
    recorders.push_back(std::make_unique<runtime::FlightRecorder>(flight_folder(config), rank));
    options.recorders.push_back(recorders.back().get());
  }
  std::vector<int> codes(static_cast<std::size_t>(ranks), 0);
  runtime::run_loopback(ranks, options, [&](std::unique_ptr<Communicator> world) {
    const Place place{world->rank(), world->size(), host_name(), "loopback"};
    std::unique_ptr<Trainer> trainer;
    const auto rank = static_cast<std::size_t>(world->rank());
    codes[rank] = start_rank(config, data, *world, place, recorders[rank].get(), trainer);
  });
  return codes.front();
}

/// Adds to a hang what every rank was doing; rethrows anything else as it is.
[[noreturn]] void explain_and_rethrow(const TrainConfig& config, int ranks) {
  try {
    throw;
  } catch (const Error& error) {
    if (error.code() != ExitCode::hang) throw;
    throw Error(ExitCode::hang,
                "a wait for another rank was not over in time; what the ranks were doing:\n" +
                    runtime::hang_report(flight_folder(config), ranks) +
                    "the wait: " + error.what());
  }
}

int train_mpi(TrainDraft& draft, const std::shared_ptr<const TrainingData>& data) {
  TrainConfig& config = draft.config;
  runtime::MpiSession session({.timeout_seconds = config.comm.timeout_seconds});
  runtime::check_launcher(
      runtime::process_environment(),
      {session.rank(), session.size(), session.local_rank(), session.local_size()});
  try {
    config.parallelism.context_parallel_degree =
        resolve_grid(config.parallelism, session.size()).context;
    check_schemes(draft);  // what depends on the number of ranks
    draft.check();
  } catch (const Error&) {
    // Should this rank's configuration be the odd one out, that is what to tell.
    check_common_ground(config, *data, *session.world());
    throw;
  }
  auto recorder = std::make_unique<runtime::FlightRecorder>(flight_folder(config), session.rank());
  std::unique_ptr<Communicator> world = session.world(recorder.get());
  std::unique_ptr<Trainer> trainer;
  try {
    const Place place{session.local_rank(), session.local_size(), session.host_name(),
                      session.mpi_version()};
    const int code = start_rank(config, data, *world, place, recorder.get(), trainer);
    trainer.reset();
    world.reset();
    session.close();
    return code;
  } catch (...) {
    // The process ends now. Streams may be blocked on peers that are gone: nothing may wait for
    // them.
    static_cast<void>(trainer.release());
    static_cast<void>(world.release());
    static_cast<void>(recorder.release());
    explain_and_rethrow(config, session.size());
  }
}

}  // namespace

int run_train(const TrainOptions& options) {
  runtime::signals::install();
  TrainDraft draft = load_config(options.config_path, options.overrides);
  const auto data = std::make_shared<const TrainingData>(draft);
  if (draft.config.comm.backend == "mpi") return train_mpi(draft, data);
  return train_loopback(draft.config, data);
}

}  // namespace longhaul::launch

#include "launch/train.h"

#include <csignal>
#include <cstdio>

#include "launch/attention_axis.h"
#include "launch/checkpoints.h"
#include "launch/common_ground.h"
#include "launch/config.h"
#include "launch/corpora.h"
#include "launch/initial_weights.h"
#include "launch/memory.h"
#include "launch/model.h"
#include "launch/place.h"
#include "launch/reporter.h"
#include "launch/row_rules.h"
#include "launch/run_claim.h"
#include "launch/run_header.h"
#include "launch/schemes.h"
#include "launch/trainer.h"
#include "launch/validation.h"
#include "runtime/comm/gather.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/console.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/host_name.h"
#include "runtime/signals.h"

namespace longhaul::launch {
namespace {

using runtime::Communicator;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;

std::string flight_folder(const TrainConfig& config) { return config.job.output_dir + "/flight"; }

/// The corpora and what the configuration makes of them; a contradiction shows before anything is
/// written.
struct TrainingData {
  explicit TrainingData(TrainDraft& draft)
      : corpora(draft),
        vocab_size(model_vocabulary(draft.config, corpora.first())),
        sequences(make_sequences(draft.config, corpora)),
        validation(open_validation(draft, corpora.first(), sequences.of(0))) {}
  TrainingData(const TrainingData&) = delete;  // sequences refers to corpora
  TrainingData& operator=(const TrainingData&) = delete;

  const TrainingCorpora corpora;
  const std::int64_t vocab_size;
  const runtime::MixedSequences sequences;
  const std::shared_ptr<const ValidationData> validation;  ///< null without [validation]
};

/// What goes on from a checkpoint, if one is asked for. Collective over the ranks that train.
Resumed load_checkpoint(Trainer& trainer, const TrainConfig& config,
                        const runtime::Stream& stream) {
  if (!config.checkpoint.enable) return {};
  Communicator& world = trainer.trainers();
  const std::string folder = checkpoint_folder(config);
  const runtime::WordOrInteger& wanted = config.checkpoint.resume;
  Resumed resumed;
  if (wanted.word == "auto") {
    if (const auto newest = runtime::Checkpoint::open_newest(folder, world, stream))
      resumed = {newest->metadata().step, trainer.load(*newest).lines()};
    return resumed;
  }
  if (wanted.word.empty()) {
    const auto given = runtime::Checkpoint::open(folder, wanted.integer, world, stream);
    resumed = {given.metadata().step, trainer.load(given).lines()};
  }
  if (world.rank() == 0) {
    const auto aside = runtime::set_aside_newer_checkpoints(folder, trainer.completed_steps());
    if (!aside.empty()) {
      std::printf("later checkpoints of an earlier run are now in %s\n", aside.c_str());
    }
  }
  world.barrier(stream);
  stream.synchronize(runtime::deadline_in(3600));
  return resumed;
}

/// The weights of checkpoint.initial_load_path, if it is given. Collective, as above.
std::vector<std::string> load_initial_weights(Trainer& trainer, const TrainConfig& config,
                                              std::int64_t vocab_size,
                                              const runtime::Stream& stream) {
  if (!config.checkpoint.initial_load_path) return {};
  const auto source =
      open_weights(*config.checkpoint.initial_load_path, trainer.trainers(), stream);
  std::vector<std::string> lines = require_fitting_weights(*source, config, vocab_size);
  trainer.load_weights(*source);
  return lines;
}

/// Initialises or loads; dedicated attention servers begin where the others do.
Resumed resume(Trainer& trainer, const TrainConfig& config, std::int64_t vocab_size,
               const runtime::Stream& stream) {
  trainer.initialise();
  Resumed resumed;
  if (!trainer.serves()) {
    resumed = load_checkpoint(trainer, config, stream);
    if (resumed.step == 0)
      resumed.changes = load_initial_weights(trainer, config, vocab_size, stream);
  }
  trainer.begin();
  resumed.step = trainer.completed_steps();
  return resumed;
}

/// The loop of one rank.
int train_rank(const TrainConfig& config, Communicator& world, const Place& place, Trainer& trainer,
               const TrainingData& data, runtime::FlightRecorder* recorder) {
  const runtime::Stream stream = runtime::Stream::cpu("host");
  const auto phase = [&](const char* name) {
    if (recorder != nullptr) recorder->set_phase(name);
  };
  phase("checkpoint folder");
  const std::int64_t checkpoint_bytes = prove_checkpoints(trainer, config, stream);
  phase("resume");
  const Resumed resumed = resume(trainer, config, data.vocab_size, stream);

  RunHeader header = run_header(config, data.corpora, data.validation.get(), trainer);
  header.corpora = corpus_parts(config, data.corpora, data.sequences);
  const PeakFlops peak =
      measure_peak_flops(world, place, config.training.dtype, trainer.compute(), stream);
  header.peak_flops = peak.flops;
  header.peak_convention = peak.convention;
  for (const RankDevice& device : place.devices) header.devices.push_back(device.text());
  header.communicator = place.communicator;
  header.hosts = runtime::gather_texts(world, place.host, stream, runtime::deadline_in(3600));
  const RunStart start{place, data.validation.get(),
                       checkpoint_room(trainer, config, checkpoint_bytes, stream), resumed};
  std::unique_ptr<Reporter> reporter;
  if (world.rank() == 0) reporter = std::make_unique<Reporter>(header, start);

  std::int64_t saved_step = resumed.step;
  // Before anything is written: another run may have taken the folders over.
  const auto require_claim = [&] {
    if (place.claim != nullptr) place.claim->check();
  };
  const auto save = [&] {
    if (!config.checkpoint.enable || saved_step == trainer.completed_steps()) return;
    phase("checkpoint");
    trainer.save(checkpoint_folder(config), config.checkpoint.keep_latest_k, require_claim);
    saved_step = trainer.completed_steps();
  };
  const auto stop = [] { return runtime::signals::requested() != 0; };
  Validation validation(config, data.validation, trainer);
  // False when told to stop before the end: the run makes up for it when it goes on.
  const auto validate = [&] {
    phase("validation");
    const auto metrics = validation.run(stop);
    require_claim();
    if (metrics && reporter) reporter->validation(*metrics);
    return metrics.has_value();
  };

  bool stopped = false;
  if (validation.due(resumed.step)) {
    const bool done = reporter && reporter->has_validation(resumed.step);
    stopped = trainer.sum_over_ranks({done ? 1.0 : 0.0})[0] == 0 && !validate();
  }
  while (!stopped && trainer.completed_steps() < config.training.steps) {
    phase("training");
    validation.load_ahead(trainer.completed_steps() + 1);
    const StepResult result = trainer.step(stop());
    require_claim();
    if (reporter) reporter->step(result, trainer, data.sequences.latest_epoch(trainer.cursor()));

    const std::int64_t step = trainer.completed_steps();
    const bool last = step == config.training.steps;
    stopped = result.stop_requested && !last;
    if (last || stopped || step % config.checkpoint.interval == 0) save();
    if (!stopped && validation.due(step)) stopped = !validate();
  }
  if (!stopped) return static_cast<int>(ExitCode::done);
  save();
  if (reporter) reporter->stopped(trainer.completed_steps());
  if (config.checkpoint.enable) return static_cast<int>(ExitCode::preempted);
  // 75 promises a checkpoint. Without one the job ends as the signal would have ended it.
  const int signal = runtime::signals::requested();
  return 128 + (signal != 0 ? signal : SIGUSR1);
}

/// Makes this rank's trainer, and trains.
int start_rank(const TrainConfig& config, const std::shared_ptr<const TrainingData>& data,
               Communicator& world, const Location& location, runtime::FlightRecorder* recorder,
               std::unique_ptr<Trainer>& trainer) {
  Place place = place_rank(config, world, location);
  place.memory_text = check_memory(
      {config, data->vocab_size, data->sequences, place.threads, place.device}, world, place);
  TrainerInputs inputs;
  inputs.config = config;
  inputs.vocab_size = data->vocab_size;
  inputs.sequences = {data, &data->sequences};  // a trainer that is left behind goes on reading
  inputs.corpus_digest = data->corpora.digest();
  inputs.threads = place.threads;
  inputs.device = place.device;
  inputs.nccl = nccl_options(config, place);
  inputs.recorder = recorder;
  trainer = std::make_unique<Trainer>(std::move(inputs), world);
  return train_rank(config, world, place, *trainer, *data, recorder);
}

int train_loopback(const TrainConfig& config, const std::shared_ptr<const TrainingData>& data) {
  const int ranks = attention_axis(config).world_size();
  require_no_launcher(ranks);
  RunClaim claim(config);
  std::vector<std::unique_ptr<runtime::FlightRecorder>> recorders;
  runtime::LoopbackOptions options;
  options.timeout_seconds = config.comm.timeout_seconds;
  for (int rank = 0; rank < ranks; ++rank) {
    recorders.push_back(std::make_unique<runtime::FlightRecorder>(flight_folder(config), rank));
    options.recorders.push_back(recorders.back().get());
  }
  std::vector<int> codes(static_cast<std::size_t>(ranks), 0);
  runtime::run_loopback(ranks, options, [&](std::unique_ptr<Communicator> world) {
    const Location location{world->rank(), runtime::host_name(), "loopback",
                            world->rank() == 0 ? &claim : nullptr};
    std::unique_ptr<Trainer> trainer;
    const auto rank = static_cast<std::size_t>(world->rank());
    codes[rank] = start_rank(config, data, *world, location, recorders[rank].get(), trainer);
  });
  return codes.front();
}

/// Adds to a hang what every rank was doing; rethrows anything else as it is.
[[noreturn]] void explain_and_rethrow(const TrainConfig& config, int ranks) {
  try {
    throw;
  } catch (const Error& error) {
    if (error.code() != ExitCode::hang) throw;
    throw Error(ExitCode::hang, std::string("a wait was not over in time: ") + error.what() +
                                    "\nwhat the ranks were doing:\n" +
                                    runtime::hang_report(flight_folder(config), ranks));
  }
}

int train_mpi(TrainDraft& draft, const std::shared_ptr<const TrainingData>& data) {
  TrainConfig& config = draft.config;
  runtime::MpiSession session(mpi_options(config));
  runtime::check_launcher(
      runtime::process_environment(),
      {session.rank(), session.size(), session.local_rank(), session.local_size()});
  std::unique_ptr<runtime::HostCommunicator> world = session.world();
  try {
    config.parallelism.context_parallel_degree = resolve_grid(config, session.size()).context;
    check_schemes(draft);  // what depends on the number of ranks
    draft.check();
  } catch (const Error&) {
    // Should this rank's configuration be the odd one out, that is what to tell.
    check_common_ground(config, data->corpora, data->validation.get(), *world);
    throw;
  }
  check_common_ground(config, data->corpora, data->validation.get(), *world);
  const std::unique_ptr<RunClaim> claim =
      claim_for_job(config, *world);  // nothing is written before
  auto recorder = std::make_unique<runtime::FlightRecorder>(flight_folder(config), session.rank());
  world->record_to(recorder.get());
  std::unique_ptr<Trainer> trainer;
  try {
    const bool nccl = config.comm.backend == "nccl";
    const Location location = location_of(
        session, config, (nccl ? "NCCL beside " : "") + session.mpi_version(), claim.get());
    const int code = start_rank(config, data, *world, location, recorder.get(), trainer);
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
  TrainDraft draft = load_config(options.config_path, options.overrides);
  runtime::signals::install();    // until here a signal ends the program as it ends any other
  runtime::ConsoleRelay console;  // whoever reads stdout cannot stop the run
  const auto data = std::make_shared<const TrainingData>(draft);
  const int code = draft.config.comm.backend == "loopback" ? train_loopback(draft.config, data)
                                                           : train_mpi(draft, data);
  if (!console.close() && code == 0) fail(ExitCode::io, runtime::kOutputLost);
  return code;
}

}  // namespace longhaul::launch

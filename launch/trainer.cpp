#include "launch/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "launch/device.h"
#include "launch/model.h"
#include "launch/pretend.h"
#include "launch/rehearsal.h"
#include "runtime/comm/gather.h"
#include "runtime/error.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/host_copy.h"
#include "runtime/purpose.h"
#include "runtime/tensor.h"
#include "runtime/trace_range.h"

namespace longhaul::launch {

using runtime::Communicator;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Tensor;

namespace {

/// Waits of the host for its own streams: whatever they wait for has the communicators' deadline,
/// so this one only has to be later than any of those.
runtime::Deadline host_deadline() { return runtime::deadline_in(24 * 3600.0); }

runtime::GridShape grid_shape(const TrainConfig& config) {
  runtime::GridShape shape;
  shape.data = config.parallelism.data_parallel_replicate_degree;
  shape.context = config.parallelism.context_parallel_degree;
  return shape;
}

/// Column sums, in rank order.
std::vector<double> sum(const std::vector<std::vector<double>>& rows) {
  std::vector<double> total(rows.front().size(), 0.0);
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) total[i] += row[i];
  }
  return total;
}

/// The one place that chooses the device of training: all other work follows this stream's.
runtime::Stream compute_stream(const runtime::Device& device, int threads) {
  if (device.kind == runtime::DeviceKind::cpu) return runtime::Stream::cpu("compute", threads);
  return runtime::Stream::cuda("compute", device.index);
}

}  // namespace

Trainer::Trainer(TrainerInputs inputs, Communicator& world)
    : inputs_(std::move(inputs)),
      grid_(grid_shape(inputs_.config)),
      data_rank_(grid_.coordinate(world.rank(), runtime::Axis::data)),
      context_rank_(grid_.coordinate(world.rank(), runtime::Axis::context)),
      plan_(batch_plan(inputs_.config)),
      compute_(compute_stream(inputs_.device, inputs_.threads)),
      control_stream_(runtime::Stream::cpu("control")),
      model_(make_model(inputs_.config, inputs_.vocab_size)),
      batch_shape_{inputs_.config.data, model_.masks(),
                   parallel::layout_from_name(inputs_.config.parallelism.context_parallel_layout),
                   static_cast<int>(grid_.size(runtime::Axis::context)), context_rank_},
      loader_(loader_inputs(inputs_.sequences)) {
  const TrainConfig& config = inputs_.config;
  using enum runtime::Axis;
  const auto of_device = [&](std::unique_ptr<Communicator> ranks) {
    return device_communicator(std::move(ranks), inputs_.nccl);
  };
  auto gradient_comm = of_device(grid_.split(world, {data, context}, "gradients"));
  control_comm_ = grid_.split(world, {data, context}, "control");
  parallel::AttentionOptions attention{.wire_dtype = config.parallelism.context_parallel_wire_dtype,
                                       .kernels = attention_kernels(config),
                                       .deterministic = config.debug.deterministic};
  if (config.debug.pretend) {
    const Pretending pretending = parse_pretending(*config.debug.pretend);
    pretending.check_ranks(world.size());
    attention.pretence = pretending.of_rank(world.rank());
  }
  schemes_ = scheme_changes(config);
  attention.scheme = scheme_ = schemes_.front().scheme;
  if (const auto linear = linear_choice(config)) attention.linear_scheme = linear->scheme;
  attention_ = std::make_unique<parallel::Attention>(
      attention, of_device(grid_.split(world, {context}, "context")), compute_);

  store_ =
      std::make_unique<models::ParameterStore>(model_.table(), config.training.dtype, compute_);
  exchange_ = std::make_unique<parallel::ParameterExchange>(
      store_->table(), config.parallelism.shard == "optimizer", std::move(gradient_comm), compute_);
  rows_.resize(static_cast<std::size_t>(config.training.interleave));
  const OptimizerConfig& o = config.optimizer;
  optimizer_ = std::make_unique<models::AdamW>(
      models::AdamWOptions{o.beta1, o.beta2, o.eps, o.weight_decay, config.training.max_norm},
      *store_, exchange_->updated(), compute_);
  if (!on_device() || grid_.size() == 1) return;
  rehearsal_ =
      std::make_unique<Rehearsal>(model_, *store_, grid_.split(world, {}, "rehearsal"), compute_);
  if (config.comm.backend == "loopback")
    evaluation_comm_ = grid_.split(world, {data, context}, "evaluation");
}

Trainer::~Trainer() = default;

void Trainer::initialise() {
  store_->initialise(static_cast<std::uint64_t>(inputs_.config.debug.seed), compute_);
  compute_.synchronize(host_deadline());
}

/// Makes what a batch's attention calls need in a step; on any thread.
void Trainer::prepare(LocalBatch& batch, std::int64_t step) const {
  for (const attention::Mask& mask : batch.masks)
    batch.attention.push_back(attention_->batch(mask, batch.layout));
  model_.prepare(*attention_, scheme_of(step), batch.attention);
}

/// Whether streams wait for threads of this process: of other ranks (loopback), or the one that
/// hands messages over (mpi). Then kernels may be loaded only while no stream waits.
bool Trainer::loads_while_idle() const {
  return on_device() && inputs_.config.comm.backend != "nccl" && grid_.size() > 1;
}

/// Ranks that are threads of one process wait for each other.
void Trainer::meet() {
  if (evaluation_comm_)
    runtime::gather_numbers(*evaluation_comm_, {0.0}, control_stream_, host_deadline());
}

/// prepare() where kernels may be loaded only while no stream of the process waits: between
/// meetings of its ranks.
void Trainer::prepare_together(LocalBatch& batch, std::int64_t step, std::int64_t together) {
  prepare(batch, step);
  rehearsal_->before(batch, together, *attention_);
}

/// Takes from the system what the batch's attention needs, before any rank waits for another.
void Trainer::load(const LocalBatch& batch) const {
  for (const auto& calls : batch.attention) attention_->load(*calls);
}

LoaderInputs Trainer::loader_inputs(std::shared_ptr<const runtime::SequenceSource> source) const {
  LoaderInputs inputs{std::move(source), inputs_.config, data_rank_, batch_shape_};
  if (!loads_while_idle())
    inputs.prepare = [this](LocalBatch& batch, std::int64_t step) { prepare(batch, step); };
  return inputs;
}

std::vector<double> Trainer::sum_over_ranks(const std::vector<double>& own) {
  return sum(runtime::gather_numbers(*control_comm_, own, control_stream_, host_deadline()));
}

/// Moves a batch's rows into the row tensors, behind whatever still reads the last one's. A batch
/// may have more or fewer rows than the last.
models::Batch Trainer::upload(LocalBatch batch, Rows& rows) {
  const auto put = [&](auto& values, Tensor& tensor) {
    using Value = typename std::remove_reference_t<decltype(values)>::value_type;
    const auto count = static_cast<std::int64_t>(values.size());
    if (tensor.empty() || tensor.elements() < count)
      tensor = Tensor({count}, runtime::DTypeOf<Value>::value, compute_);
    const runtime::TensorView part = tensor.view().slice(0, 0, count);
    runtime::ops::upload(std::move(values), part, compute_);
    return part;
  };
  models::Batch uploaded{put(batch.rows.tokens, rows.tokens), put(batch.rows.labels, rows.labels),
                         put(batch.rows.positions, rows.positions), std::move(batch.attention)};
  if (!batch.rows.label_weights.empty())
    uploaded.label_weights = put(batch.rows.label_weights, rows.label_weights);
  return uploaded;
}

const parallel::Expression& Trainer::scheme_of(std::int64_t step) const {
  const auto after = std::ranges::find_if(
      schemes_, [&](const SchemeChange& change) { return change.step > step; });
  return std::prev(after)->scheme;
}

/// Cheap when it is the last step's.
void Trainer::set_scheme(std::int64_t step) {
  const parallel::Expression& wanted = scheme_of(step);
  if (wanted == scheme_) return;
  attention_->set_scheme(wanted);
  scheme_ = wanted;
}

double Trainer::attended_seconds() const {
  const parallel::AttendTimes times = attention_->attend_times();
  return on_device() ? times.seconds : times.cpu_seconds;
}

StepResult Trainer::step(bool stop) {
  const auto begin = runtime::Clock::now();
  const double waited_before = compute_.waited_seconds(), attended_before = attended_seconds();
  compute_.reset_peak();
  exchange_->reset_peak();
  attention_->reset_peak();
  const TrainConfig& config = inputs_.config;
  const std::int64_t step_number = completed_steps_ + 1;
  if (inputs_.recorder != nullptr) inputs_.recorder->set_step(step_number);
  const runtime::TraceRange trace("step", step_number);

  // This rank's share of the step's sequences, made while the last step ran; then the next one's.
  std::vector<LocalBatch> batches = [&] {
    const runtime::TraceRange trace_loading("batches");
    return loader_.take({step_number, cursor_});
  }();
  set_scheme(step_number);
  const std::int64_t together = std::min(std::ssize(rows_), std::ssize(batches));
  if (loads_while_idle()) {
    for (LocalBatch& batch : batches) prepare_together(batch, step_number, together);
  } else if (rehearsal_ && !rehearsal_->done() && !batches.empty()) {
    rehearsal_->before(batches.front(), together, *attention_);
  }
  if (on_device()) {
    for (const LocalBatch& batch : batches) load(batch);
    compute_.reset_peak();
    attention_->reset_peak();
  }
  if (step_number < config.training.steps)
    loader_.start({step_number + 1, cursor_ + plan_.sequences_per_step});
  // Nothing is exchanged on a device before this sum: all ranks are ready then.
  // Labels and their weight, and each mask's area from one rank of each context group.
  std::vector<double> counts(2 + model_.masks().size(), 0.0);
  for (const LocalBatch& batch : batches) {
    counts[0] += static_cast<double>(batch.local_labels);
    counts[1] += batch.local_weight;
    for (std::size_t kind = 0; context_rank_ == 0 && kind < batch.masks.size(); ++kind)
      counts[2 + kind] += static_cast<double>(batch.masks[kind].area());
  }
  counts = sum_over_ranks(counts);
  const double labels = counts[0], weight = counts[1];

  const models::LearningRateSchedule schedule{config.optimizer.lr, config.lr_scheduler.warmup_steps,
                                              config.training.steps,
                                              config.lr_scheduler.min_lr_factor};
  const double lr = models::learning_rate(schedule, step_number);
  // Every rank knows whether there is anything to learn from, so all of them leave it out together.
  Update mine;
  if (labels > 0) mine = update(std::move(batches), weight, lr);
  ++completed_steps_;
  cursor_ += plan_.sequences_per_step;

  StepResult result;
  const auto memory = static_cast<double>(peak_tensor_bytes() + exchange_->peak_staging_bytes() +
                                          attention_->peak_staging_bytes());
  const double waited = compute_.waited_seconds() - waited_before,
               attended = attended_seconds() - attended_before;
  for (const auto& rank : runtime::gather_numbers(
           *control_comm_, {mine.loss_sum, stop ? 1.0 : 0.0, memory, waited, attended},
           control_stream_, host_deadline())) {
    result.loss += rank[0] / weight;  // NaN without labels
    result.stop_requested |= rank[1] > 0;
    result.memory_bytes = std::max(result.memory_bytes, static_cast<std::int64_t>(rank[2]));
    result.comm_seconds = std::max(result.comm_seconds, rank[3]);
    result.attention_seconds.push_back(rank[4]);
  }
  if (on_device()) result.comm_seconds = std::nan("");
  result.grad_norm = labels > 0 ? mine.grad_norm : std::nan("");
  if (config.debug.pretend) result.loss = result.grad_norm = std::nan("");
  result.learning_rate = lr;
  result.labels = static_cast<std::int64_t>(labels);
  for (std::size_t kind = 0; kind < model_.masks().size(); ++kind) {
    result.areas.push_back(static_cast<std::int64_t>(counts[2 + kind]));
    result.area += model_.masks()[kind].layers * result.areas.back();
  }
  result.seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  return result;
}

Trainer::Update Trainer::update(std::vector<LocalBatch> batches, double weight, double lr) {
  // Each finished group of gradients is reduced while the next is computed.
  store_->drop_gradients();
  std::vector<Tensor> losses;  // of each pass
  for (std::size_t done = 0; done < batches.size();) {
    const runtime::TraceRange trace("forward and backward");
    std::vector<models::Batch> together;
    for (Rows& rows : rows_) {
      if (done < batches.size()) together.push_back(upload(std::move(batches[done++]), rows));
    }
    models::PassOptions options;
    options.loss_scale = 1.0 / weight;
    if (done == batches.size()) {
      options.on_gradients = [this](parallel::ElementRange finished) {
        const runtime::Purpose purpose("messages of gradients between ranks");
        exchange_->reduce(store_->gradients(), finished);
      };
    }
    std::ranges::move(model_.forward_backward(resources(), together, options),
                      std::back_inserter(losses));
  }

  // Clip and update. The host reads what is left at the end, so that no device waits for it before.
  const std::int64_t step = completed_steps_ + 1;
  const Tensor norm = [&] {
    const runtime::TraceRange trace("update");
    Tensor found = exchange_->gradient_norm(store_->gradients());
    optimizer_->step(lr, step, found, compute_);
    exchange_->share(store_->values());
    return found;
  }();
  const auto host_norm = runtime::ops::download<double>(norm, compute_);
  std::vector<std::shared_ptr<const std::vector<double>>> host_losses;
  for (const Tensor& loss : losses)
    host_losses.push_back(runtime::ops::download<double>(loss, compute_));
  {
    const runtime::TraceRange trace("the host waits");
    compute_.synchronize(host_deadline());
  }
  Update update;
  for (const auto& loss : host_losses) update.loss_sum += loss->front();
  update.grad_norm = host_norm->front();
  runtime::ops::require_finite_norm(update.grad_norm, step);
  return update;
}

BatchEvaluation Trainer::evaluate(LocalBatch batch) {
  set_scheme(last_step());
  if (loads_while_idle()) {
    meet();
    prepare_together(batch, last_step(), 1);
    load(batch);
    meet();
  }
  BatchEvaluation result;
  result.tensors = model_.evaluate(resources(), upload(std::move(batch), rows_.front()));
  const auto loss = runtime::ops::download<double>(result.tensors.loss_sum, compute_);
  compute_.synchronize(host_deadline());
  result.loss = loss->front();
  return result;
}

BatchEvaluation Trainer::evaluate(const runtime::SequenceSource& source,
                                  std::span<const std::int64_t> numbers) {
  LocalBatch batch = make_local_batch(source, numbers, batch_shape_);
  if (!loads_while_idle()) prepare(batch, last_step());
  return evaluate(std::move(batch));
}

std::vector<parallel::FlatState> Trainer::states() const {
  std::vector<parallel::FlatState> states = optimizer_->states();
  states.insert(states.begin(), store_->state());
  return states;
}

std::vector<runtime::TensorSlice> Trainer::checkpoint_slices() const {
  // What every rank holds is written by its owner, like what only the owner holds.
  const auto owned = exchange_->sharding().owned(control_comm_->rank());
  std::vector<runtime::TensorSlice> slices;
  for (const parallel::FlatState& state : states()) {
    for (auto& [name, sizes, start, view] : state_boxes(store_->table(), state, owned))
      slices.push_back({std::move(name), std::move(sizes), std::move(start), view,
                        on_device() ? std::optional(compute_) : std::nullopt});
  }
  return slices;
}

void Trainer::save(const std::filesystem::path& folder, std::int64_t keep_latest_k,
                   std::function<void()> before_change) {
  TrainConfig config = inputs_.config;
  config.model.vocab_size = inputs_.vocab_size;  // resolved
  compute_.synchronize(host_deadline());
  runtime::CheckpointMetadata metadata;
  metadata.step = completed_steps_;
  metadata.tokens = cursor_ * config.training.seq_len;
  metadata.cursor = cursor_;
  metadata.optimizer_step = optimizer_->updates();
  metadata.seed = static_cast<std::uint64_t>(config.debug.seed);
  metadata.config = to_toml(config);
  metadata.corpus_digest = inputs_.corpus_digest;
  metadata.extra["seq_len"] = std::to_string(config.training.seq_len);
  runtime::SaveOptions options;
  options.folder = folder;
  options.keep_latest_k = keep_latest_k;
  options.before_change = std::move(before_change);
  runtime::save_checkpoint(options, metadata, checkpoint_slices(), *control_comm_, control_stream_);
}

ConfigChanges Trainer::load(const runtime::Checkpoint& checkpoint) {
  const runtime::CheckpointMetadata& metadata = checkpoint.metadata();
  ConfigChanges changes =
      require_same_meaning(metadata, checkpoint.path().string(),
                           {inputs_.config, inputs_.vocab_size, inputs_.corpus_digest});
  compute_.synchronize(host_deadline());
  const std::vector<parallel::FlatState> all = states();
  const auto& parameters = store_->table().parameters();
  if (all.size() * parameters.size() != checkpoint.tensors().size()) {
    fail(ExitCode::data, checkpoint.path().string(), ": holds ", checkpoint.tensors().size(),
         " tensors, the model of this run ", all.size() * parameters.size());
  }
  for (const parallel::FlatState& state : all) {
    for (const parallel::Parameter& parameter : parameters) {
      const std::string name = state.prefix + parameter.name;
      if (!checkpoint.has(name) || checkpoint.tensor(name).sizes != parameter.sizes) {
        fail(ExitCode::data, checkpoint.path().string(), ": tensor '", name,
             "' is missing or of another size than in the model of this run");
      }
    }
    for (const auto& block : state_boxes(store_->table(), state, state.ranges))
      on_device() ? checkpoint.read(block.name, block.start, block.view, compute_)
                  : checkpoint.read(block.name, block.start, block.view);
  }
  store_->values_changed();
  optimizer_->set_updates(metadata.optimizer_step);
  completed_steps_ = metadata.step;
  cursor_ = metadata.cursor;
  return changes;
}

}  // namespace longhaul::launch

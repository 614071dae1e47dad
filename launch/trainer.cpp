#include "launch/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "launch/device.h"
#include "launch/model.h"
#include "launch/pretend.h"
#include "launch/rehearsal.h"
#include "launch/task_agreement.h"
#include "models/serving.h"
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
      grid_(grid_of(inputs_.config)),
      axis_(attention_axis(inputs_.config)),
      group_(axis_.group(world.rank())),
      axis_rank_(axis_.rank(world.rank())),
      plan_(batch_plan(inputs_.config)),
      compute_(compute_stream(inputs_.device, inputs_.threads)),
      control_stream_(runtime::Stream::cpu("control")),
      model_(make_model(inputs_.config, inputs_.vocab_size)),
      batch_shape_(batch_shape(inputs_.config, model_.masks(), axis_, axis_rank_)),
      loader_(loader_inputs(inputs_.sequences)) {
  const TrainConfig& config = inputs_.config;
  control_comm_ = world.split(0, world.rank(), "control");
  parallel::AttentionOptions attention{.wire_dtype = config.parallelism.context_parallel_wire_dtype,
                                       .kernels = attention_kernels(config),
                                       .deterministic = config.debug.deterministic,
                                       .lend = config.comm.shared_memory == "auto"};
  if (config.debug.pretend) {
    const Pretending pretending = parse_pretending(*config.debug.pretend);
    pretending.check_ranks(world.size());
    attention.pretence = pretending.of_rank(world.rank());
  }
  schemes_ = scheme_changes(config);
  attention.scheme = scheme_ = schemes_.front().scheme;
  if (const auto linear = linear_choice(config)) attention.linear_scheme = linear->scheme;
  attention.transport = external_ = connect_external_servers(config, world.rank());
  attention_ = std::make_unique<parallel::Attention>(
      attention, device_communicator(axis_.split(world, "context"), inputs_.nccl), compute_);
  if (config.attention_servers.measure_speeds) {
    meter_ = std::make_unique<SpeedMeter>(axis_, *attention_, external_.get());
    speeds_ = std::make_unique<ServerSpeeds>(meter_->servers());
  }
  make_learner(world);
}

/// What learns, on ranks that are no servers. Collective over `world`.
void Trainer::make_learner(Communicator& world) {
  const TrainConfig& config = inputs_.config;
  const bool serves = axis_.serves(world.rank());
  trainers_ = world.split(serves ? 1 : 0, world.rank(), "trainers");
  if (on_device() && config.comm.backend == "loopback" && world.size() > 1)
    evaluation_comm_ = world.split(0, world.rank(), "evaluation");
  if (serves) {
    trainers_.reset();
    return;
  }
  using enum runtime::Axis;
  store_ = std::make_unique<models::ParameterStore>(
      model_.table(), config.training.dtype, compute_,
      inputs_.evaluates_only ? models::Gradients::none : models::Gradients::held);
  rows_.resize(static_cast<std::size_t>(config.training.interleave));
  if (inputs_.evaluates_only) return;
  auto gradient_comm =
      device_communicator(grid_.split(*trainers_, {data, context}, "gradients"), inputs_.nccl);
  exchange_ = std::make_unique<parallel::ParameterExchange>(
      store_->table(), config.parallelism.shard == "optimizer", std::move(gradient_comm), compute_);
  const OptimizerConfig& o = config.optimizer;
  optimizer_ = std::make_unique<models::AdamW>(
      models::AdamWOptions{o.beta1, o.beta2, o.eps, o.weight_decay, config.training.max_norm},
      *store_, exchange_->updated(), compute_);
  if (!on_device() || world.size() == 1) return;
  rehearsal_ = std::make_unique<Rehearsal>(model_, *store_,
                                           grid_.split(*trainers_, {}, "rehearsal"), compute_);
}

Trainer::~Trainer() = default;

void Trainer::initialise() {
  if (serves()) return;
  store_->initialise(static_cast<std::uint64_t>(inputs_.config.debug.seed), compute_);
  compute_.synchronize(host_deadline());
}

/// Who attends in a step, with their speeds where those are measured; on any thread.
parallel::AttentionServers Trainer::servers_of(std::int64_t step) const {
  parallel::AttentionServers servers = axis_.servers;
  if (speeds_) servers.speeds = speeds_->of(step);
  return servers;
}

/// Makes what a batch's attention calls need in a step; on any thread.
void Trainer::prepare(LocalBatch& batch, std::int64_t step) const {
  const parallel::AttentionServers servers = servers_of(step);
  for (const attention::Mask& mask : batch.masks)
    batch.attention.push_back(attention_->batch(mask, batch.layout, servers));
  model_.prepare(*attention_, scheme_of(step), batch.attention);
}

/// Whether streams wait for threads of this process: of other ranks (loopback), or the one that
/// hands messages over (mpi). Then kernels may be loaded only while no stream waits.
bool Trainer::loads_while_idle() const {
  return on_device() && inputs_.config.comm.backend != "nccl" && axis_.world_size() > 1;
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
  if (rehearsal_) rehearsal_->before(batch, together, *attention_);
}

/// Takes from the system what the batch's attention needs, before any rank waits for another.
void Trainer::load(const LocalBatch& batch) const {
  for (const auto& calls : batch.attention) attention_->load(*calls);
}

LoaderInputs Trainer::loader_inputs(std::shared_ptr<const runtime::SequenceSource> source) const {
  LoaderInputs inputs{std::move(source), inputs_.config, axis_, group_, batch_shape_};
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

/// This rank's share of a step's sequences, made while the last step ran; begins to make the next
/// one's.
std::vector<LocalBatch> Trainer::take_batches(std::int64_t step) {
  std::vector<LocalBatch> batches = [&] {
    const runtime::TraceRange trace_loading("batches");
    return loader_.take({step, cursor_});
  }();
  set_scheme(step);
  const std::int64_t together =
      std::min(inputs_.config.training.interleave, static_cast<std::int64_t>(batches.size()));
  if (loads_while_idle()) {
    for (LocalBatch& batch : batches) prepare_together(batch, step, together);
  } else if (rehearsal_ && !rehearsal_->done() && !batches.empty()) {
    rehearsal_->before(batches.front(), together, *attention_);
  }
  if (on_device()) {
    for (const LocalBatch& batch : batches) load(batch);
    compute_.reset_peak();
    attention_->reset_peak();
  }
  if (step < inputs_.config.training.steps)
    loader_.start({step + 1, cursor_ + plan_.sequences_per_step});
  return batches;
}

void Trainer::require_same_tasks(std::span<const LocalBatch> batches) {
  if (!axis_.spans_data || loads_while_idle()) return;  // there they are not dealt yet
  const TaskDigest tasks(batches);
  const auto ranks =
      runtime::gather_numbers(*control_comm_, tasks.numbers(), control_stream_, host_deadline());
  tasks.require_same(ranks, completed_steps_, *control_comm_, control_stream_);
}

StepResult Trainer::step(bool stop) {
  const auto begin = runtime::Clock::now();
  const double waited_before = compute_.waited_seconds(), attended_before = attended_seconds();
  compute_.reset_peak();
  if (!serves()) exchange_->reset_peak();
  attention_->reset_peak();
  const TrainConfig& config = inputs_.config;
  const std::int64_t step_number = completed_steps_ + 1;
  if (inputs_.recorder != nullptr) inputs_.recorder->set_step(step_number);
  const runtime::TraceRange trace("step", step_number);

  std::vector<LocalBatch> batches = take_batches(step_number);
  const double loading = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  // Nothing is exchanged on a device before this sum: all ranks are ready then.
  // Labels and their weight, and each mask's area from one rank of each group that attends apart.
  std::vector<double> counts(2 + model_.masks().size(), 0.0);
  for (const LocalBatch& batch : batches) {
    counts[0] += static_cast<double>(batch.local_labels);
    counts[1] += batch.local_weight;
    for (std::size_t kind = 0; axis_rank_ == 0 && kind < batch.masks.size(); ++kind)
      counts[2 + kind] += static_cast<double>(batch.masks[kind].area());
  }
  const TaskDigest tasks(batches);
  std::ranges::copy(tasks.numbers(), std::back_inserter(counts));
  const auto ranks =
      runtime::gather_numbers(*control_comm_, counts, control_stream_, host_deadline());
  if (axis_.spans_data) tasks.require_same(ranks, step_number, *control_comm_, control_stream_);
  counts = sum(ranks);
  const double labels = counts[0], weight = counts[1];

  const models::LearningRateSchedule schedule{config.optimizer.lr, config.lr_scheduler.warmup_steps,
                                              config.training.steps,
                                              config.lr_scheduler.min_lr_factor};
  const double lr = models::learning_rate(schedule, step_number);
  // Every rank knows whether there is anything to learn from, so all of them leave it out together.
  Update mine;
  if (labels > 0) {
    if (serves()) {
      serve(std::move(batches));
    } else {
      mine = update(std::move(batches), weight, lr);
    }
  }
  ++completed_steps_;
  cursor_ += plan_.sequences_per_step;

  StepResult result = gather_result(mine,
                                    {stop, loading, compute_.waited_seconds() - waited_before,
                                     attended_seconds() - attended_before},
                                    weight);
  result.learning_rate = lr;
  result.labels = static_cast<std::int64_t>(labels);
  for (std::size_t kind = 0; kind < model_.masks().size(); ++kind) {
    result.areas.push_back(static_cast<std::int64_t>(counts[2 + kind]));
    result.area += model_.masks()[kind].layers * result.areas.back();
  }
  result.seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  return result;
}

/// What ranks tell each other at the end of a step; `weight` as in update().
StepResult Trainer::gather_result(const Update& mine, const OwnStep& own, double weight) {
  const auto memory = static_cast<double>(peak_tensor_bytes() + attention_->peak_staging_bytes() +
                                          (serves() ? 0 : exchange_->peak_staging_bytes()));
  std::vector<double> numbers{mine.loss_sum,
                              own.stop ? 1.0 : 0.0,
                              memory,
                              serves() ? 0.0 : own.waited_seconds,
                              mine.grad_norm,
                              own.loading_seconds,
                              own.attended_seconds};
  const std::size_t measured = numbers.size();
  if (meter_) std::ranges::copy(meter_->since_last_step(), std::back_inserter(numbers));
  const auto ranks =
      runtime::gather_numbers(*control_comm_, numbers, control_stream_, host_deadline());
  if (meter_) speeds_->add(completed_steps_, meter_->by_server(ranks, measured));
  StepResult result;
  std::vector<double> attended;
  for (const auto& rank : ranks) {
    result.loss += rank[0] / weight;  // NaN without labels
    result.stop_requested |= rank[1] > 0;
    result.memory_bytes = std::max(result.memory_bytes, static_cast<std::int64_t>(rank[2]));
    result.comm_seconds = std::max(result.comm_seconds, rank[3]);
    result.loading_seconds = std::max(result.loading_seconds, rank[5]);
    attended.push_back(rank[6]);
  }
  // Where dedicated servers attend no other rank does.
  const auto idle = axis_.dedicated > 0 ? std::ssize(ranks) - axis_.dedicated : 0;
  result.attention_seconds.assign(attended.begin() + idle, attended.end());
  if (on_device()) result.comm_seconds = std::nan("");
  result.grad_norm = weight > 0 ? ranks.front()[4] : std::nan("");  // all trainers have the same
  if (weight > 0) runtime::ops::require_finite_norm(result.grad_norm, completed_steps_);
  if (inputs_.config.debug.pretend) result.loss = result.grad_norm = std::nan("");
  return result;
}

/// As many together as in update().
void Trainer::serve(std::vector<LocalBatch> batches) {
  const auto together = static_cast<std::size_t>(inputs_.config.training.interleave);
  for (std::size_t done = 0; done < batches.size(); done += together) {
    std::vector<models::ServedBatch> served;
    for (std::size_t i = done; i < std::min(done + together, batches.size()); ++i)
      served.push_back(std::move(batches[i].attention));
    models::serve_training(model_, *attention_, served, compute_);
  }
  compute_.synchronize(host_deadline());
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
  const Tensor norm = [&] {
    const runtime::TraceRange trace("update");
    Tensor found = exchange_->gradient_norm(store_->gradients());
    optimizer_->step(lr, completed_steps_ + 1, found, compute_);
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
  if (serves()) {
    models::serve_evaluation(model_, *attention_, batch.attention, compute_);
    compute_.synchronize(host_deadline());
    return result;
  }
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

}  // namespace longhaul::launch

#pragma once
// One rank's training state, and one optimizer step of it. The loop around it is train.cpp.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/attention_axis.h"
#include "launch/config_changes.h"
#include "launch/loader.h"
#include "launch/rehearsal.h"
#include "launch/schemes.h"
#include "launch/server_speeds.h"
#include "launch/train_config.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "parallel/attention.h"
#include "parallel/parameter_exchange.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/grid.h"
#include "runtime/comm/nccl.h"
#include "runtime/device.h"
#include "runtime/flight.h"
#include "runtime/io/checkpoint.h"

namespace longhaul::launch {

class WeightSource;

/// What a run is made of besides its configuration.
struct TrainerInputs {
  TrainConfig config;  ///< resolved: context_parallel_degree fits the world
  std::int64_t vocab_size = 0;
  std::shared_ptr<const runtime::SequenceSource> sequences;
  std::string corpus_digest;
  int threads = 1;  ///< OpenMP threads of this rank's compute on a CPU
  runtime::Device device = {};
  std::optional<runtime::NcclOptions> nccl = {};  ///< of ranks whose GPUs exchange by NCCL
  runtime::FlightRecorder* recorder = nullptr;    ///< may be null
  /// Only evaluates: it has no gradients and no optimizer, takes no step and saves nothing.
  bool evaluates_only = false;
};

/// What a step did, the same on every rank but for `seconds`. Where attention is pretended loss and
/// gradient norm are NaN.
struct StepResult {
  /// Mean over all labels of the step by their weights, nats. A step without labels has neither
  /// loss nor gradient (NaN) and updates nothing; the learning rate goes on.
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  std::int64_t labels = 0;          ///< those of weight 0 do not count
  std::vector<std::int64_t> areas;  ///< (query, key) pairs of each of the model's masks
  std::int64_t area = 0;            ///< those of all layers together
  double seconds = 0;
  /// Of softmax attention, each rank's that takes part in it: thread-CPU seconds, on GPUs the
  /// device's, or pretended ones. Of external servers nothing is known.
  std::vector<double> attention_seconds;
  /// Of `seconds`, waiting for batches and their plans; largest over ranks.
  double loading_seconds = 0;
  /// Compute waited for communication, largest over ranks but dedicated attention servers; NaN
  /// where that is not measured: CUDA.
  double comm_seconds = 0;
  std::int64_t memory_bytes = 0;  ///< peaks of tensors and of staged messages, largest over ranks
  bool stop_requested = false;    ///< some rank was asked to stop
};

/// One micro-batch of this rank, forward only.
struct BatchEvaluation {
  double loss = 0;  ///< sum of its rows' token losses, nats: what training sums
  models::Evaluation tensors;
};

/// On a dedicated attention server (attention_axis.h) it takes part in the attention of all passes,
/// and has neither rows nor parameters, gradients or optimizer.
class Trainer {
 public:
  /// Collective over `world`, whose size is AttentionAxis::world_size(). The configuration is one
  /// that load_config() found nothing wrong with.
  Trainer(TrainerInputs inputs, runtime::Communicator& world);
  ~Trainer();

  /// Whether this rank is a dedicated attention server.
  bool serves() const { return store_ == nullptr; }
  /// The ranks that are none, on one of them.
  runtime::Communicator& trainers() { return *trainers_; }

  /// Fills the weights from a source that holds this model's (require_fitting_weights); the
  /// optimizer and the order of the data begin afresh. Not for servers. Throws Error(data) when its
  /// tensors are not this model's.
  void load_weights(const WeightSource& source);
  /// Draws the weights from the seed; nothing is read.
  void initialise();
  /// Continues from a checkpoint of any grid; returns what of the configuration is not as it was.
  /// Collective over trainers(), and not for servers. Throws Error(config) where that gives the
  /// checkpoint another meaning (config_changes.h), or, for one that only evaluates, another model;
  /// Error(data) when its tensors are not this model's, by name and size.
  ConfigChanges load(const runtime::Checkpoint& checkpoint);
  /// After load(), if anything was loaded: all ranks begin where the trainers do. Collective.
  void begin();
  /// What a checkpoint holds of this rank, for save(); views of the trainer's own memory.
  std::vector<runtime::TensorSlice> checkpoint_slices() const;
  /// Collective; returns when the checkpoint is committed. `before_change`: of
  /// runtime::SaveOptions.
  void save(
      const std::filesystem::path& folder, std::int64_t keep_latest_k,
      std::function<void()> before_change = [] {});

  /// One optimizer step over tokens_per_step tokens. Collective. `stop` is this rank's wish to stop
  /// after it.
  StepResult step(bool stop = false);

  std::int64_t completed_steps() const { return completed_steps_; }
  /// Sequences taken so far, over all data ranks.
  std::int64_t cursor() const { return cursor_; }
  std::int64_t parameters() const { return model_.table().elements(); }
  const models::Model& model() const { return model_; }
  /// Where all of its work goes.
  const runtime::Stream& compute() const { return compute_; }
  const parallel::Attention& attention() const { return *attention_; }
  /// Of this rank's tensors in the last step; messages are not among them.
  std::int64_t peak_tensor_bytes() const { return compute_.memory().peak_bytes; }

  /// Forward only over one micro-batch, under the scheme of the last step. Collective over the
  /// attention's axis, and no further: where that is the context axis, data ranks may evaluate
  /// different numbers of batches. Returned tensors are complete; a server has none. Nothing that a
  /// step depends on changes.
  BatchEvaluation evaluate(LocalBatch batch);
  /// The same of the sequences `numbers` of any source; rows come in the local order of their
  /// layout (make_local_batch).
  BatchEvaluation evaluate(const runtime::SequenceSource& source,
                           std::span<const std::int64_t> numbers);
  /// Throws Error(disagree) on all ranks unless all of them have dealt the tasks of these batches
  /// alike. Collective where schemes span data; does nothing where they do not.
  void require_same_tasks(std::span<const LocalBatch> batches);
  /// What loads this rank's share of any source's sequences as training's is loaded.
  LoaderInputs loader_inputs(std::shared_ptr<const runtime::SequenceSource> source) const;
  models::ParameterStore& store() { return *store_; }
  /// Column sums of every rank's numbers, in rank order. Collective over all ranks.
  std::vector<double> sum_over_ranks(const std::vector<double>& own);

 private:
  /// Row tensors in device memory, as long as the longest batch so far.
  struct Rows {
    runtime::Tensor tokens, labels, positions, label_weights;
  };
  /// Waits of the host for its own streams: whatever they wait for has the communicators' deadline,
  /// so this one only has to be later than any of those.
  static runtime::Deadline host_deadline() { return runtime::deadline_in(24 * 3600.0); }

  void make_learner(runtime::Communicator& world);
  void carry(const std::map<std::string, std::string>& extra);
  std::vector<std::vector<double>> gather_behind_disks(const std::vector<double>& own);
  void write_checkpoint(const std::filesystem::path& folder, std::int64_t keep_latest_k,
                        std::function<void()> before_change);
  parallel::AttentionServers servers_of(std::int64_t step) const;
  void prepare(LocalBatch& batch, std::int64_t step) const;
  bool loads_while_idle() const;
  void meet();
  void prepare_together(LocalBatch& batch, std::int64_t step, std::int64_t together);
  void load(const LocalBatch& batch) const;
  const parallel::Expression& scheme_of(std::int64_t step) const;
  std::vector<LocalBatch> take_batches(std::int64_t step);
  models::Batch upload(LocalBatch batch, Rows& rows);
  models::Resources resources() { return {*store_, *attention_, compute_}; }
  void set_scheme(std::int64_t step);
  /// What an update leaves on this rank.
  struct Update {
    double loss_sum = 0;  ///< of this rank's rows, by their weights
    double grad_norm = 0;
  };
  /// Forward, backward and update; `weight` is that of all labels of the step. Returns when done.
  Update update(std::vector<LocalBatch> batches, double weight, double lr);
  /// Of this rank's step, beside what it has learnt.
  struct OwnStep {
    bool stop = false;
    double loading_seconds = 0, waited_seconds = 0, attended_seconds = 0;
  };
  StepResult gather_result(const Update& mine, const OwnStep& own, double weight);
  /// A server's part in it.
  void serve(std::vector<LocalBatch> batches);
  /// The last one done; of a run that has done none, the first.
  std::int64_t last_step() const { return std::max<std::int64_t>(1, completed_steps_); }
  /// Everything a checkpoint holds: the model's values and the optimizer's state.
  std::vector<parallel::FlatState> states() const;
  /// Seconds of softmax attention so far: StepResult::attention_seconds.
  double attended_seconds() const;
  bool on_device() const { return compute_.device().kind != runtime::DeviceKind::cpu; }

  const TrainerInputs inputs_;
  const runtime::ProcessGrid grid_;
  const AttentionAxis axis_;
  const int group_, axis_rank_;  // of this rank on it
  const BatchPlan plan_;
  const runtime::Stream compute_;
  const runtime::Stream
      control_stream_;  ///< of control_comm_: small host values, never behind compute
  std::unique_ptr<runtime::Communicator> control_comm_;
  std::unique_ptr<runtime::Communicator> trainers_;  ///< none on a server
  std::unique_ptr<runtime::Communicator>
      evaluation_comm_;  ///< of ranks that are threads on a device
  std::vector<SchemeChange> schemes_;
  parallel::Expression scheme_;                          ///< what attention_ uses now
  std::shared_ptr<parallel::ExternalServers> external_;  ///< of a run that has such servers
  std::unique_ptr<parallel::Attention> attention_;
  const models::Model model_;
  const BatchShape batch_shape_;
  std::unique_ptr<SpeedMeter> meter_;  ///< this and the next: where speeds are measured
  std::unique_ptr<ServerSpeeds> speeds_;
  std::unique_ptr<models::ParameterStore> store_;  // this one and the next two: none on a server
  std::unique_ptr<parallel::ParameterExchange> exchange_;
  std::unique_ptr<models::AdamW> optimizer_;
  std::unique_ptr<Rehearsal> rehearsal_;  ///< of ranks that exchange from a device
  Loader loader_;
  std::vector<Rows> rows_;  // of each pass that goes through the model together
  std::int64_t completed_steps_ = 0;
  std::int64_t cursor_ = 0;
  /// Of the weights: what checkpoints carry on (CheckpointMetadata::extra).
  std::map<std::string, std::string> carried_;
};

}  // namespace longhaul::launch

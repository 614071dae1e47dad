#pragma once
// The configuration of a run: one struct a section of the TOML file, filled and checked from one
// schema (config_schema.cpp), where every key is declared and explained; config.h loads it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/model_config.h"
#include "runtime/config/schema.h"
#include "runtime/dtype.h"
#include "runtime/grid_shape.h"

namespace longhaul::launch {

struct JobConfig {
  std::string output_dir;
};

/// Without vocab_size the corpus says it.
using models::ModelConfig;

/// A corpus of a mixture.
struct CorpusShare : runtime::Configuration {
  std::string path;
  double weight = 0;  ///< its share is this over the sum of all
};

/// Exactly one of corpus and corpora is given.
struct DataConfig {
  std::optional<std::string> corpus;
  runtime::ConfigRows<CorpusShare> corpora;
  std::string mask;
  /// Tokens; given when the mask takes them.
  std::optional<std::int64_t> window, prefix, global, block;
  std::string positions;  ///< "document" or "sequence"; "auto" until the rules have seen the mask
};

struct TrainingConfig {
  std::int64_t seq_len = 0;
  std::int64_t micro_batch_size = 0;
  std::int64_t tokens_per_step = 0;
  std::int64_t interleave = 1;  ///< passes that go through the model together
  std::int64_t steps = 0;
  double max_norm = 0;
  runtime::DType dtype = runtime::DType::float32;
};

struct OptimizerConfig {
  std::string name;
  double lr = 0;
  double beta1 = 0;
  double beta2 = 0;
  double eps = 0;
  double weight_decay = 0;
};

struct LrSchedulerConfig {
  std::int64_t warmup_steps = 0;
  std::string decay_type;
  double min_lr_factor = 0;
};

struct ParallelismConfig {
  std::int64_t context_parallel_degree = 0;    ///< -1 until the number of ranks is known
  std::string context_parallel_scheme;         ///< an expression, or a policy
  std::string context_parallel_linear_scheme;  ///< the same of recurrences
  std::string context_parallel_switch;
  std::string context_parallel_layout;
  runtime::DType context_parallel_wire_dtype = runtime::DType::float32;
  std::int64_t data_parallel_replicate_degree = 0;
  std::int64_t tensor_parallel_degree = 0;
  std::int64_t pipeline_parallel_degree = 0;
  std::string shard;  ///< "none" or "optimizer"
};

/// Of a scheme that has attention servers.
struct AttentionServersConfig {
  std::string mode;  ///< "in_place", "dedicated" or "external"
  std::optional<std::int64_t> count;
  std::vector<std::string> addresses;
  std::optional<std::string> token_file;
  double timeout_seconds = 0;
  std::int64_t buffer_bytes = 0;  ///< 0: no limit
  bool measure_speeds = false;
};

struct ActivationCheckpointConfig {
  std::string mode;  ///< "none" or "full"
};

struct CheckpointConfig {
  bool enable = false;
  std::string folder;  ///< inside job.output_dir unless absolute
  std::int64_t interval = 0;
  std::int64_t keep_latest_k = 0;  ///< 0 keeps all
  runtime::WordOrInteger resume;   ///< "auto", "never" or a step
  std::optional<std::string> initial_load_path;
};

struct ValidationConfig {
  bool enable = false;
  std::optional<std::string> corpus;  ///< given when enabled
  std::int64_t freq = 0;              ///< steps between validations
  std::int64_t steps = -1;            ///< of tokens_per_step tokens; -1: the whole corpus
};

struct MetricsConfig {
  std::int64_t log_freq = 0;
};

struct CommConfig {
  std::string backend;  ///< "mpi", "loopback" or "nccl"
  double timeout_seconds = 0;
  std::int64_t nccl_max_ctas = 0;  ///< of each communicator; 0: as many as NCCL likes
  std::string shared_memory;       ///< "auto" or "off"
};

struct DeviceConfig {
  std::string kind;       ///< "cpu" or "cuda"
  std::string attention;  ///< "auto", "cudnn" or "exact"
  bool share = false;     ///< processes may share a CUDA device
};

struct DebugConfig {
  std::int64_t seed = 0;
  bool deterministic = false;
  std::int64_t threads = 0;            ///< OpenMP threads a rank; 0: cores / local ranks
  std::optional<std::string> pretend;  ///< parse_pretending(); none: attention computes
};

struct TrainConfig : runtime::Configuration {
  JobConfig job;
  ModelConfig model;
  DataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  LrSchedulerConfig lr_scheduler;
  ParallelismConfig parallelism;
  AttentionServersConfig attention_servers;
  ActivationCheckpointConfig activation_checkpoint;
  CheckpointConfig checkpoint;
  ValidationConfig validation;
  MetricsConfig metrics;
  CommConfig comm;
  DeviceConfig device;
  DebugConfig debug;
};

/// The grid whose degrees are known, as resolve_grid() leaves them.
runtime::GridShape grid_of(const TrainConfig& config);

/// The grid of `world_size` ranks, dedicated attention servers among them: -1 becomes whatever is
/// left. Throws Error(launch) when the degrees and servers do not make up world_size, saying which
/// counts would do.
runtime::GridShape resolve_grid(const TrainConfig& config, std::int64_t world_size);

/// Sequences that one step takes on every data rank, in passes of micro_batch_size.
struct BatchPlan {
  std::int64_t sequences_per_step = 0;  ///< over all data ranks
  std::int64_t accumulation_steps = 0;  ///< passes per data rank and step
};
/// tokens_per_step cut over the data axis; a loaded config always divides.
BatchPlan batch_plan(const TrainConfig& config);

/// data.corpora, or data.corpus with weight 1.
std::vector<CorpusShare> corpora_of(const DataConfig& data);
/// "data.corpora" or "data.corpus", whichever is given.
const char* corpus_key(const DataConfig& data);

/// The folder that checkpoints go to: checkpoint.folder, inside job.output_dir unless absolute.
std::string checkpoint_folder(const TrainConfig& config);

/// Every key: its name, type, default, bounds and explanation.
const runtime::ConfigSchema& config_schema();

/// runtime::to_toml() and to_json() of a configuration.
std::string to_toml(const TrainConfig& config);
std::string to_json(const TrainConfig& config);
/// XXH3-64 of to_toml(config).
std::uint64_t digest(const TrainConfig& config);

/// Markdown table of all keys: name, type, default and explanation, from the schema.
std::string config_reference();

}  // namespace longhaul::launch

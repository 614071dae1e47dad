#include "launch/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "launch/attention_axis.h"
#include "launch/batches.h"
#include "launch/config.h"
#include "launch/corpora.h"
#include "launch/device.h"
#include "launch/initial_weights.h"
#include "launch/kernels.h"
#include "launch/legality.h"
#include "launch/memory.h"
#include "launch/metrics.h"
#include "launch/model.h"
#include "launch/row_rules.h"
#include "launch/schemes.h"
#include "launch/validation_data.h"
#include "models/optimizer.h"
#include "parallel/sharding.h"
#include "runtime/cores.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

namespace {

std::string grid_text(const TrainConfig& config) {
  const ParallelismConfig& grid = config.parallelism;
  const std::int64_t data = grid.data_parallel_replicate_degree,
                     context = grid.context_parallel_degree;
  if (context == -1) {
    return fmt::format("data {} x context (whatever ranks are left; --ranks N resolves it)", data);
  }
  const std::int64_t servers = dedicated_servers(config);
  return fmt::format(
      "{}: data {} x context {}{}", counted(data * context + servers, "rank"), data, context,
      servers == 0 ? "" : fmt::format(" + {}", counted(servers, "attention server")));
}

std::string batch_text(const TrainConfig& config) {
  const BatchPlan plan = batch_plan(config);
  return fmt::format("{} a step = {} of {}: {} per pass on each of {}, {}{}",
                     counted(config.training.tokens_per_step, "token"),
                     counted(plan.sequences_per_step, "sequence"), grouped(config.training.seq_len),
                     config.training.micro_batch_size,
                     counted(config.parallelism.data_parallel_replicate_degree, "data rank"),
                     counted(plan.accumulation_steps, "pass"),
                     config.training.interleave > 1 ? ", two together" : "");
}

std::string parameters_text(const models::Model& model, std::int64_t vocabulary) {
  return fmt::format("{} (vocabulary {})", grouped(model.table().elements()), grouped(vocabulary));
}

/// Of a rank that holds its share of a pass, rounded up.
std::string activations_text(const TrainConfig& config, const models::Model& model) {
  const std::int64_t tokens = config.training.seq_len * config.training.micro_batch_size;
  const std::int64_t ranks = std::max<std::int64_t>(1, config.parallelism.context_parallel_degree);
  const std::int64_t rows = (tokens + ranks - 1) / ranks, together = config.training.interleave;
  return fmt::format("{} a rank, kept for backward: {} of {}, recomputation {}",
                     runtime::size_text(together * model.activation_bytes(rows)),
                     together == 1 ? "one pass" : fmt::format("{} passes together", together),
                     counted(rows, "row"), config.activation_checkpoint.mode);
}

std::string optimizer_text(const TrainConfig& config, const models::Model& model) {
  const std::int64_t elements = model.table().elements();
  const std::int64_t context = config.parallelism.context_parallel_degree;
  const std::int64_t ranks = context * config.parallelism.data_parallel_replicate_degree;
  const auto size = [](std::int64_t owned) {
    return runtime::size_text(owned * models::AdamW::kStateBytes);
  };
  std::string text = fmt::format("{}, {} bytes of state a parameter", config.optimizer.name,
                                 models::AdamW::kStateBytes);
  if (config.parallelism.shard == "none") return text + ": " + size(elements) + " on every rank";
  if (context == -1) return text + ", sharded over all ranks";
  return fmt::format("{}, sharded over {}: at most {} on each", text, counted(ranks, "rank"),
                     size(parallel::Sharding::largest_share(elements, ranks)));
}

std::string attention_text(const TrainConfig& config) {
  return fmt::format("{} over {} x mask {} x {} (wire {}) x {}: {}", schemes_text(config),
                     config.parallelism.context_parallel_layout, mask_text(config.data),
                     name(config.training.dtype),
                     name(config.parallelism.context_parallel_wire_dtype), config.comm.backend,
                     config.parallelism.context_parallel_degree > 0
                         ? "legal"
                         : "decided once the ranks are known (--ranks N)");
}

/// A text of several lines as comments.
std::string commented(std::string text) {
  for (auto at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1))
    text.insert(at + 1, "# ");
  return text;
}

std::string corpora_text(const TrainConfig& config, const TrainingCorpora& corpora,
                         const runtime::MixedSequences& sequences) {
  const std::string vocabulary = "vocabulary " + grouped(corpora.first().vocabulary_size);
  if (corpora.all().size() == 1) {
    const std::string weights = corpora.label_weights();
    return fmt::format("{} in {}, {}, {} an epoch{}", counted(corpora.tokens(), "token"),
                       counted(corpora.first().documents, "document"), vocabulary,
                       counted(sequences.of(0).per_epoch(), "sequence"),
                       weights.empty() ? "" : ", label weights " + weights);
  }
  std::string text = fmt::format("{} corpora of {}, {}", corpora.all().size(),
                                 counted(corpora.tokens(), "token"), vocabulary);
  for (const CorpusPart& part : corpus_parts(config, corpora, sequences))
    text += "\n            " + to_string(part, config.training.steps);
  return text;
}

/// The threads are those that a lone rank would have.
std::string memory_text(const TrainConfig& config, std::int64_t vocabulary,
                        const runtime::SequenceSource& sequences) {
  const int given = static_cast<int>(config.debug.threads),
            environment = runtime::threads_of_environment();
  const int threads = given > 0         ? given
                      : environment > 0 ? environment
                                        : runtime::available_cores();
  return commented(judge_memory({config, vocabulary, sequences, threads}));
}

}  // namespace

int run_validate(const ValidateOptions& options) {
  if (options.keys) {
    std::fputs(config_reference().c_str(), stdout);
    return 0;
  }
  if (options.legality) {
    std::fputs(legality_table().c_str(), stdout);
    return 0;
  }
  if (options.config_path.empty()) {
    fail(ExitCode::usage, "validate needs a CONFIG (or --keys, or --legality)");
  }
  TrainDraft draft = load_config(options.config_path, options.overrides, options.ranks);
  const TrainConfig& config = draft.config;
  const TrainingCorpora corpora(draft);
  const std::int64_t vocabulary = model_vocabulary(config, corpora.first());
  const runtime::MixedSequences sequences = make_sequences(config, corpora);
  const auto validation = open_validation(draft, corpora.first(), sequences.of(0));

  const models::Model model = make_model(config, vocabulary);
  fmt::print("# {}: no problems\n", options.config_path);
  fmt::print("# grid        {}\n", grid_text(config));
  fmt::print("# batch       {}\n", batch_text(config));
  fmt::print("# parameters  {}\n", parameters_text(model, vocabulary));
  fmt::print("# optimizer   {}\n", optimizer_text(config, model));
  fmt::print("# layers      {}\n", layers_text(config.model));
  if (const auto rope = rope_text(config.model, config.training.seq_len))
    fmt::print("# rope        {}\n", *rope);
  if (config.parallelism.context_parallel_degree > 0)
    fmt::print("# activations {}\n", activations_text(config, model));
  fmt::print("# attention   {}\n", attention_text(config));
  if (const auto servers = servers_text(config)) fmt::print("# servers     {}\n", *servers);
  if (const auto linear = linear_text(config)) fmt::print("# linear      {}\n", *linear);
  if (config.device.kind == "cuda" && config.parallelism.context_parallel_degree > 0) {
    fmt::print("# kernels     {}\n",
               commented(kernels_text({config, vocabulary, sequences}, attention_kernels(config),
                                      config.debug.deterministic)));
  }
  fmt::print("# documents   {}\n", documents_text(config.data));
  fmt::print("# corpus      {}\n", commented(corpora_text(config, corpora, sequences)));
  if (validation) fmt::print("# validation  {}\n", validation->text());
  if (const auto& path = config.checkpoint.initial_load_path;
      path && std::filesystem::is_directory(*path)) {
    const auto source = open_weights(*path);
    source->require(model.table());
    for (const std::string& line : require_fitting_weights(*source, config, vocabulary))
      fmt::print("# {}\n", line);
  }
  fmt::print("# digest      {:016x}\n", digest(config));
  if (config.parallelism.context_parallel_degree > 0)
    fmt::print("# memory      {}\n", memory_text(config, vocabulary, sequences));
  fmt::print("\n{}", to_toml(config));
  return 0;
}

}  // namespace longhaul::launch

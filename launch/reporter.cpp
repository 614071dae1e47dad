#include "launch/reporter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "launch/batches.h"
#include "launch/config.h"
#include "launch/config_changes.h"
#include "launch/model.h"
#include "launch/row_rules.h"
#include "launch/schemes.h"
#include "models/family.h"
#include "runtime/build_info.h"
#include "runtime/cgroup.h"
#include "runtime/counted.h"

namespace longhaul::launch {
namespace {

using runtime::counted;

/// Later lines under the first, behind the word that it follows.
std::string indented(std::string text) {
  for (auto at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1))
    text.insert(at + 1, "         ");
  return text;
}

void print_corpora(const RunHeader& header) {
  const std::vector<CorpusPart>& parts = header.corpora;
  const auto unstored =
      std::ranges::find_if(parts, [](const CorpusPart& part) { return !part.unigram_entropy; });
  const std::string entropy =
      unstored == parts.end()
          ? fmt::format("unigram entropy {:.4f} nats", header.unigram_entropy.value())
          : fmt::format("unigram entropy not stored (longhaul inspect --add-entropy {} stores it)",
                        unstored->path);
  std::printf(
      "corpus   %s, %s tokens, vocabulary %s, %s%s\n",
      parts.size() == 1 ? parts[0].path.c_str() : fmt::format("{} corpora", parts.size()).c_str(),
      grouped(header.corpus_tokens).c_str(), grouped(header.vocabulary_size).c_str(),
      entropy.c_str(),
      header.label_weights.empty() ? "" : (", label weights " + header.label_weights).c_str());
  if (parts.size() == 1) return;
  for (const CorpusPart& part : parts)
    std::printf("         %s\n", to_string(part, header.config.training.steps).c_str());
}

void print_start(const RunHeader& header, const RunStart& start, bool validated) {
  const TrainConfig& config = header.config;
  std::printf("%s\n", runtime::version_line().c_str());
  std::printf("model    %s, %s parameters, %s\n", config.model.architecture.c_str(),
              grouped(header.parameters).c_str(), runtime::name(config.training.dtype));
  const std::vector<std::string> layers =
      models::family_of(config.model.architecture).layers(config.model);
  if (!config.model.layer_types.empty() ||
      std::ranges::count(layers, models::kFullAttention) != std::ssize(layers))
    std::printf("layers   %s\n", layers_text(layers, config.model.sliding_window).c_str());
  if (const auto rope = rope_text(config.model, config.training.seq_len))
    std::printf("rope     %s\n", rope->c_str());
  print_corpora(header);
  std::printf("grid     data %ld x context %ld%s, attention %s over %s layout, mask %s\n",
              header.grid.data, header.grid.context,
              config.parallelism.shard == "optimizer" ? ", optimizer state sharded" : "",
              schemes_text(config).c_str(), config.parallelism.context_parallel_layout.c_str(),
              mask_text(config.data).c_str());
  if (!header.attention_servers.empty())
    std::printf("servers  %s\n", header.attention_servers.c_str());
  if (!header.pretended.empty()) {
    std::printf(
        "pretended softmax attention only takes the time of a model (%s): no figure below that "
        "depends on it is measured, and losses mean nothing\n",
        header.pretended.c_str());
  }
  if (const auto linear = linear_text(config)) std::printf("linear   %s\n", linear->c_str());
  std::printf("rows     %s\n", documents_text(config.data).c_str());
  const std::set<std::string> hosts(header.hosts.begin(), header.hosts.end());
  std::printf("ranks    %zu on %s, over %s\n", header.hosts.size(),
              counted(std::ssize(hosts), "host").c_str(),
              header.communicator.substr(0, header.communicator.find(',')).c_str());
  std::printf("cores    %s\n", start.place.cores_text.c_str());
  if (!start.place.lending.empty()) std::printf("lending  %s\n", start.place.lending.c_str());
  if (!start.place.devices.empty())
    std::printf("devices  %s\n", indented(binding_text(start.place.devices)).c_str());
  std::printf("peak     %.4g TFLOP/s: %s; mfu divides by it\n", header.peak_flops / 1e12,
              header.peak_convention.c_str());
  std::printf("memory   %s\n", start.place.memory_text.c_str());
  std::printf("batch    %s a step: sequences of %s, %s of %ld on each data rank%s\n",
              counted(config.training.tokens_per_step, "token").c_str(),
              grouped(config.training.seq_len).c_str(),
              counted(header.accumulation_steps, "pass").c_str(), config.training.micro_batch_size,
              config.training.interleave > 1 ? ", two together" : "");
  std::printf("saves    %s\n", start.room.c_str());
  std::printf("update   %s\n", optimizer_text(config).c_str());
  if (start.validation != nullptr) std::printf("validate %s\n", start.validation->text().c_str());
  if (start.resumed.step >= config.training.steps) {
    std::printf(
        "done     all steps of this run, %ld, are in its checkpoint of step %ld; %s to do\n",
        config.training.steps, start.resumed.step,
        validated ? "nothing" : "only its validation is left");
    return;
  }
  if (start.resumed.step > 0)
    std::printf("resumed  from the checkpoint of step %ld\n", start.resumed.step);
  for (const std::string& line : start.resumed.changes) std::printf("%s\n", line.c_str());
}

const char* stop_hint(const TrainConfig& config) {
  if (!config.checkpoint.enable) return "checkpoint.enable is false, so nothing was saved";
  return config.checkpoint.resume.word == "auto"
             ? "start the same command again to go on"
             : "start it again with checkpoint.resume = \"auto\" to go on";
}

}  // namespace

Reporter::Reporter(const RunHeader& header, const RunStart& start)
    : config_(header.config),
      peak_flops_(header.peak_flops),
      memory_bytes_(start.place.device_memory_bytes > 0 ? start.place.device_memory_bytes
                                                        : runtime::node_memory_bytes()),
      writer_(config_.job.output_dir + "/metrics.jsonl", header, start.resumed.step) {
  write_resolved_config(config_);
  if (!writer_.kept_in().empty())
    std::printf("later metrics of an earlier run are now in %s\n", writer_.kept_in().c_str());
  const bool due = start.validation != nullptr && start.validation->due(start.resumed.step);
  print_start(header, start, !due || has_validation(start.resumed.step));
}

void Reporter::step(const StepResult& result, const Trainer& trainer, std::int64_t epoch) {
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
  const bool pretended = config_.debug.pretend.has_value();
  if (pretended) metrics.mfu = std::nan("");
  if (unlabelled(metrics)) metrics.tokens_per_second = metrics.mfu = std::nan("");
  metrics.memory_bytes = result.memory_bytes;
  metrics.comm_seconds = result.comm_seconds;
  metrics.loading_seconds = result.loading_seconds;
  metrics.epoch = epoch;
  metrics.cursor = trainer.cursor();
  metrics.attention_area = result.area;
  const Straggler straggler = straggler_of(result.attention_seconds);
  metrics.attention_seconds = straggler.mean_seconds;
  metrics.straggler_seconds = straggler.seconds;
  metrics.attention_imbalance = straggler.imbalance;
  writer_.write(metrics);
  seconds_ += result.seconds;
  ++steps_;
  const bool last = metrics.step == config_.training.steps;
  const bool due = metrics.step % config_.metrics.log_freq == 0 || last || steps_ == 1;
  if (!due && !unlabelled(metrics)) return;
  ConsoleContext context;
  context.steps = config_.training.steps;
  context.memory_total_bytes = memory_bytes_;
  context.pretended = pretended;
  context.seconds_left =
      seconds_ / static_cast<double>(steps_) * static_cast<double>(context.steps - metrics.step);
  std::printf("%s\n", console_line(metrics, context).c_str());
  std::fflush(stdout);
}

void Reporter::validation(const ValidationMetrics& metrics) {
  writer_.write(metrics);
  seconds_ += metrics.seconds;
  std::printf("%s\n", console_line(metrics, config_.training.steps).c_str());
  std::fflush(stdout);
}

void Reporter::stopped(std::int64_t step) const {
  std::printf("stopped  after step %ld at a signal's request; %s\n", step, stop_hint(config_));
}

}  // namespace longhaul::launch

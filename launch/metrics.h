#pragma once
// What a run says about itself: the console line of a step and metrics.jsonl, its machine-readable
// twin.
//
// metrics.jsonl holds one JSON object a line: a header ("record": "header"), then one object a step
// ("record": "step") and one a validation ("record": "validation"), behind the step that it
// followed. The first object after a resume also has "run", the header of the resumed run.

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "launch/train_config.h"
#include "runtime/counted.h"

namespace longhaul::launch {

/// What a run validates with.
struct ValidationHeader {
  std::string corpus_digest;
  std::int64_t sequences = 0, tokens = 0;  ///< of one validation
};

/// A corpus among those of a run.
struct CorpusPart {
  std::string path, digest;
  double share = 1;  ///< of the sequences
  std::int64_t tokens = 0;
  std::int64_t sequences_per_epoch = 0;
  double epochs = 0;                      ///< that the whole run takes of it
  std::optional<double> unigram_entropy;  ///< nats
  std::string label_weights;              ///< element type; empty for none
};
/// "70.00% of sequences from a.h5: 1,000 tokens, 12 sequences an epoch, 1.25 epochs in 100 steps,
/// unigram entropy 3.2100 nats".
std::string to_string(const CorpusPart& part, std::int64_t steps);

/// What holds for a whole run.
struct RunHeader {
  TrainConfig config;  ///< resolved
  runtime::GridShape grid;
  std::int64_t dedicated_servers = 0;  ///< ranks beside those of the grid
  std::string attention_servers;       ///< who attends, in words; empty: no scheme has servers
  /// From which step on attention is spread how, resolved.
  std::vector<std::pair<std::int64_t, std::string>> schemes;
  std::string linear_scheme;       ///< of linear layers; empty: none
  std::vector<std::string> hosts;  ///< one a rank
  std::string communicator;        ///< what moves messages: MPI's own version line, or "loopback"
  std::int64_t parameters = 0;
  std::int64_t accumulation_steps = 0;
  std::string corpus_digest;
  std::int64_t corpus_tokens = 0;
  std::int64_t vocabulary_size = 0;
  std::optional<double> unigram_entropy;  ///< nats a token
  std::string label_weights;              ///< their element type; empty without
  std::vector<CorpusPart> corpora;        ///< one by one; the five before are of all together
  std::optional<ValidationHeader> validation;
  /// What each rank computes on, where that is not the CPU: "GPU 0 NVIDIA H100 80GB HBM3 of host
  /// a".
  std::vector<std::string> devices;
  double peak_flops = 0;        ///< of all ranks together; what MFU divides by
  std::string peak_convention;  ///< how it was measured, in words
  std::string flop_convention;  ///< what MFU counts, in words
  std::string pretended;        ///< the model of pretended attention; empty: it computes
};

/// One optimizer step. Losses in nats a token, over the whole grid; memory is the maximum over
/// ranks. NaN here is null in the file. Of a run whose attention is pretended `seconds` and what
/// follows from it, and the last three, are pretended too, and loss, gradient norm and MFU NaN.
struct StepMetrics {
  std::int64_t step = 0;  ///< from 1
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  std::int64_t tokens = 0;  ///< of this step
  std::int64_t labels = 0;  ///< tokens that have one; a label of weight 0 is none
  double tokens_per_second = 0;
  double seconds = 0;
  double mfu = 0;  ///< fraction
  std::int64_t memory_bytes = 0;
  double comm_seconds = 0;     ///< compute waited for communication; NaN: not measured
  double loading_seconds = 0;  ///< of seconds: waited for batches and their plans
  std::int64_t epoch = 0;      ///< of several corpora the latest
  std::int64_t cursor = 0;     ///< global sequence cursor after the step: sequences taken so far
  std::int64_t attention_area = 0;  ///< (query, key) pairs of the masks, all layers together
  /// Of softmax attention of a rank that attends, their mean: thread-CPU seconds, on GPUs the
  /// device's. NaN without any.
  double attention_seconds = std::numeric_limits<double>::quiet_NaN();
  double straggler_seconds =
      std::numeric_limits<double>::quiet_NaN();  ///< the most, less that mean
  double attention_imbalance = std::numeric_limits<double>::quiet_NaN();  ///< the most over it
  bool operator==(const StepMetrics&) const = default;
};

/// How long the slowest of several ranks takes beside the others. NaN where none takes any time.
struct Straggler {
  double mean_seconds = 0;
  double seconds = 0;    ///< that the slowest takes more than the mean
  double imbalance = 1;  ///< the slowest over the mean
};
Straggler straggler_of(std::span<const double> seconds);

/// Whether the step had no label: it then updated nothing, and its loss, gradient norm and rates
/// are NaN.
bool unlabelled(const StepMetrics& metrics);

/// The validation that followed a step. The loss in nats a token, NaN where no token has a label.
struct ValidationMetrics {
  std::int64_t step = 0;
  double loss = 0;
  std::int64_t tokens = 0;
  std::int64_t labels = 0;
  double tokens_per_second = 0;
  double seconds = 0;
  bool operator==(const ValidationMetrics&) const = default;
};

/// What the console line shows beside the step's own figures.
struct ConsoleContext {
  std::int64_t steps = 0;               ///< of the whole run
  std::int64_t memory_total_bytes = 0;  ///< 0: unknown, not shown
  double seconds_left = 0;
  bool pretended = false;
};

/// "step 120/10000 | loss 3.2145 | gnorm 0.84 | lr 3.00e-04 | 412,301 tok/s | mfu 41.2% |
/// mem 61.3/79.1 GiB | comm 6.1% | eta 3h12m", "-" for what is not known; "| pretended" behind the
/// step of a run whose attention is; of a step without labels
/// "step 121/10000 | no labels, nothing updated | lr 3.00e-04 | eta 3h12m".
std::string console_line(const StepMetrics& metrics, const ConsoleContext& context);
/// "step 120/10000 | validation loss 3.1022 | 1,048,576 tokens in 3s | 412,301 tok/s".
std::string console_line(const ValidationMetrics& metrics, std::int64_t steps);

/// "45s", "12m05s", "3h12m", "2d03h".
std::string duration_text(double seconds);
using runtime::grouped;

/// Appends to metrics.jsonl; one write a line, so a killed run leaves at most one torn last line.
class MetricsWriter {
 public:
  /// Starts or goes on with a run's file, which then holds the steps up to `resumed_step` and a
  /// validation of each at most. What an earlier run wrote past it is kept in PATH.1 (the first
  /// free number), a file like this one: with resumed_step == 0 the file itself, under its new
  /// name; otherwise those lines, behind the header that they were written under. The other lines
  /// stay as they are, byte for byte; a torn last one is dropped. Creates missing parent folders.
  /// Throws Error(io), or Error(data) when the file to go on with is damaged.
  MetricsWriter(std::string path, const RunHeader& header, std::int64_t resumed_step);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  /// Where later lines of an earlier run were put; empty when there were none.
  const std::string& kept_in() const { return kept_in_; }
  /// The last step whose validation the file held when it was opened; 0 for none.
  std::int64_t validated_step() const { return validated_step_; }

  /// Throws Error(io).
  void write(const StepMetrics& metrics);
  void write(const ValidationMetrics& metrics);

 private:
  template <class Metrics>
  void write_record(const char* name, const Metrics& metrics);
  void write_line(std::string line);
  std::string path_, kept_in_;
  std::string resumed_run_;  // header of the resumed run until its first line is written
  std::int64_t validated_step_ = 0;
  int file_ = -1;
};

struct MetricsLog {
  std::string header_json;                ///< the header's line
  std::optional<double> unigram_entropy;  ///< the header's
  std::string pretended;                  ///< the header's
  std::vector<StepMetrics> steps;
  std::vector<ValidationMetrics> validations;
  std::int64_t ranks = 0;
};

/// Reads a metrics.jsonl. A torn last line is left out. Throws Error(io) when it cannot be read,
/// Error(data) naming the line that is no record.
MetricsLog read_metrics(const std::string& path);

}  // namespace longhaul::launch

#pragma once
// What a run says about itself: the console line of a step and metrics.jsonl, its machine-readable
// twin.
//
// metrics.jsonl holds one JSON object a line: a header ("record": "header"), then one object a step
// ("record": "step"). The first step after a resume also has "run", the header of the resumed run.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/train_config.h"
#include "runtime/counted.h"

namespace longhaul::launch {

/// What holds for a whole run.
struct RunHeader {
  TrainConfig config;  ///< resolved
  runtime::GridShape grid;
  /// From which step on attention is spread how, resolved.
  std::vector<std::pair<std::int64_t, std::string>> schemes;
  std::vector<std::string> hosts;  ///< one a rank
  std::string communicator;        ///< what moves messages: MPI's own version line, or "loopback"
  std::int64_t parameters = 0;
  std::int64_t accumulation_steps = 0;
  std::string corpus_digest;
  std::int64_t corpus_tokens = 0;
  std::int64_t vocabulary_size = 0;
  std::optional<double> unigram_entropy;  ///< nats a token
  double peak_flops = 0;                  ///< of all ranks together; what MFU divides by
  std::string flop_convention;            ///< what MFU counts, in words
};

/// One optimizer step. Losses in nats a token, over the whole grid; memory is the maximum over
/// ranks.
struct StepMetrics {
  std::int64_t step = 0;  ///< from 1
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  std::int64_t tokens = 0;  ///< of this step
  std::int64_t labels = 0;  ///< tokens that have one
  double tokens_per_second = 0;
  double seconds = 0;
  double mfu = 0;  ///< fraction
  std::int64_t memory_bytes = 0;
  double comm_seconds = 0;  ///< compute waited for communication
  std::int64_t epoch = 0;
  std::int64_t cursor = 0;  ///< global sequence cursor after the step: sequences taken so far
  std::int64_t attention_area = 0;  ///< (query, key) pairs of the masks, all layers together
  bool operator==(const StepMetrics&) const = default;
};

/// What the console line shows beside the step's own figures.
struct ConsoleContext {
  std::int64_t steps = 0;               ///< of the whole run
  std::int64_t memory_total_bytes = 0;  ///< 0: unknown, not shown
  double seconds_left = 0;
};

/// "step 120/10000 | loss 3.2145 | gnorm 0.84 | lr 3.00e-04 | 412,301 tok/s | mfu 41.2% |
/// mem 61.3/79.1 GiB | comm 6.1% | eta 3h12m".
std::string console_line(const StepMetrics& metrics, const ConsoleContext& context);

/// "45s", "12m05s", "3h12m", "2d03h".
std::string duration_text(double seconds);
using runtime::grouped;

/// Appends to metrics.jsonl; one write a line, so a killed run leaves at most one torn last line.
class MetricsWriter {
 public:
  /// Starts or goes on with a run's file. With resumed_step == 0 a file of an earlier run is
  /// renamed to PATH.1 (the first free number) and a new one gets `header`. Otherwise the records
  /// past resumed_step and a torn last line are cut off, and all earlier bytes stay as they are.
  /// Creates missing parent folders. Throws Error(io), or Error(data) when the file to go on with
  /// is damaged.
  MetricsWriter(std::string path, const RunHeader& header, std::int64_t resumed_step);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  /// Throws Error(io).
  void write(const StepMetrics& metrics);

 private:
  void write_line(std::string line);
  std::string path_;
  std::string resumed_run_;  // header of the resumed run until the first step is written
  int file_ = -1;
};

struct MetricsLog {
  std::string header_json;                ///< the header's line
  std::optional<double> unigram_entropy;  ///< the header's
  std::vector<StepMetrics> steps;
  std::int64_t ranks = 0;
};

/// Reads a metrics.jsonl. A torn last line is left out. Throws Error(io) when it cannot be read,
/// Error(data) naming the line that is no record.
MetricsLog read_metrics(const std::string& path);

}  // namespace longhaul::launch

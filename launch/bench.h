#pragma once
// The verb `bench`: measurements of this machine, and of what is planned on it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::launch {

/// What `bench peak` measures, unless it is told otherwise.
inline const std::vector<std::string> kPeaks = {"units", "memory", "products", "exchange", "wake"};

struct BenchPeakOptions {
  std::vector<std::string> what = kPeaks;
  int threads = 0;       ///< 0: all cores
  double seconds = 0.3;  ///< of each measurement
  std::string json_path;
  bool force = false;  ///< replace it
};

/// `bench peak`: prints what one thread and all together can do: multiply-adds of every unit of the
/// CPU, memory, matrix products, messages between two ranks, and how long threads take to wake;
/// writes all of it as JSON where asked to. Under mpirun of two ranks those processes' messages are
/// measured too. Throws Error(launch) for another number of them.
int run_bench_peak(const BenchPeakOptions& options);

struct BenchLayoutsOptions {
  std::string lengths_path;  ///< document lengths, one a line; for the mask `documents`
  std::string mask = "documents";
  std::int64_t seq_len = 131072;
  int sequences = 4;
  int ranks = 8;
  std::string scheme = "ring";
  int heads = 32, kv_heads = 8;
  std::int64_t head_dim = 128;
  std::vector<std::string> layer_types;  ///< of all layers together; none: one full_attention
  std::int64_t sliding_window = 0;       ///< tokens; 0: not given
};

/// `bench layouts`: prints what each token layout makes of packed documents, a row each: balance,
/// bytes and tiles of all layers together, and the time that planning takes. Nothing is sent.
/// Throws Error(data) for a bad list of lengths or one too short.
int run_bench_layouts(const BenchLayoutsOptions& options);

/// What `bench attention` times: every mask with every number of tokens, dtype, head dim and number
/// of key/value heads, in every direction.
struct BenchAttentionOptions {
  std::string device = "cpu";
  std::string kernels = "auto";     ///< on CUDA: auto, cudnn or exact
  std::vector<std::string> dtypes;  ///< none: float32 on the CPU, bfloat16 on CUDA
  std::vector<std::string> masks = {"causal", "full", "causal_window", "documents"};
  std::vector<std::int64_t> tokens;  ///< none: 2,048 on the CPU, 8,192 and 32,768 on CUDA
  std::vector<std::int64_t> head_dims = {64, 128};
  std::optional<std::int64_t> value_dim;  ///< of values, out and their gradients; none: head dim
  std::optional<int> heads;               ///< 8 on the CPU, 16 on CUDA
  std::vector<int> kv_heads;              ///< none: as many as heads, and a quarter of them
  /// Of forward, backward and forward_backward: both as training has them, delta between them.
  std::vector<std::string> directions = {"forward", "backward"};
  std::int64_t window = 1024, document_tokens = 512;
  int ranks = 1;  ///< above 1: the local work of one rank, beside one call of the same area
  std::string scheme = "ring", layout = "zigzag";
  int repeats = 20;
  double seconds = 1;  ///< of repeats of a case
  std::string json_path;
  bool force = false;  ///< replace it
};

/// `bench attention`: prints the rate of local attention calls over the mask's visible pairs beside
/// that of a matrix product, on the CPU also beside the peak measured just before and after each
/// (runtime::kernel_unit), and writes all of it as JSON where asked to. Throws Error(launch)
/// without the device, Error(config) for what cannot be attended to.
int run_bench_attention(const BenchAttentionOptions& options);

/// What `bench linear` times: every kind with every number of tokens, in every direction.
struct BenchLinearOptions {
  std::string device = "cpu";
  std::optional<std::string> dtype;  ///< float32 on the CPU, bfloat16 on CUDA
  std::vector<std::string> kinds = {"linear", "gated_delta"};
  std::vector<std::int64_t> tokens = {1024, 4096, 16384, 65536};
  std::int64_t head_dim = 128;   ///< D and E
  std::optional<int> heads;      ///< of values and states; 2 on the CPU, 16 on CUDA
  std::optional<int> key_heads;  ///< none: as many
  std::vector<std::string> directions = {"forward", "backward"};
  std::int64_t softmax_tokens = 4096;  ///< most for which softmax attention is timed too
  int ranks = 8;                       ///< whose bytes are counted
  std::string scheme = "auto", layout = "zigzag";
  int repeats = 20;
  double seconds = 1;  ///< of repeats of a case
  std::string json_path;
  bool force = false;  ///< replace it
};

/// `bench linear`: prints the time of local calls of recurrences by the length of the sequence,
/// their rates beside the machine's peak (float32 FMA; on CUDA a matrix product), softmax
/// attention's times and from which length on it takes longer, and the bytes that a rank of several
/// sends beside ring attention's; writes all of it as JSON where asked to. Throws as bench
/// attention.
int run_bench_linear(const BenchLinearOptions& options);

struct BenchStepOptions {
  std::string config_path;
  std::vector<std::string> overrides;  ///< "section.key=value"
  int steps = 10, warm_up = 3;
  std::int64_t document_tokens = 0;  ///< of each document that sequences pack; 0: one document each
  bool find_longest = false;
  std::int64_t unit = 1024;          ///< what the longest sequence is a multiple of, tokens
  std::optional<double> memory_gib;  ///< that a rank may take; none: what its device or host has
  std::string json_path;
  bool force = false;  ///< replace it
};

/// `bench step`: times optimizer steps of a configuration's model over random tokens; under mpirun
/// on all its ranks. Reads no corpus and writes nothing but the JSON that is asked for. With
/// find_longest it takes, in place of training.seq_len, the longest sequence whose memory estimate
/// fits. Throws as train; Error(memory) where no sequence fits.
int run_bench_step(const BenchStepOptions& options);

}  // namespace longhaul::launch

#pragma once
// The verb `bench`: measurements of this machine, and of what is planned on it.

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::launch {

struct BenchPeakOptions {
  int threads = 0;     ///< 0: all cores
  double seconds = 1;  ///< per measurement
};

/// `bench peak`: prints the float32 multiply-add rate of one thread and of all together.
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

}  // namespace longhaul::launch

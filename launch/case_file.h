#pragma once
// What the case and result files of `longhaul attention` have in common, whatever attends.
//
// Errors name the file, the dataset or attribute and what is wrong with it: Error(data).

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/named_masks.h"
#include "parallel/schedule.h"
#include "runtime/io/hdf5.h"
#include "runtime/io/output_file.h"

namespace longhaul::launch {

/// A mask by name, with the numbers that it takes; its arrays are datasets of the case.
struct MaskRequest {
  std::string name = "causal";
  attention::MaskNumbers numbers = {};
};

/// What a replay sent and how long it took; by rank.
struct ReplayFigures {
  std::vector<std::int64_t> sent_bytes;         ///< payload to others, forward and backward
  std::vector<parallel::LinkBytes> link_bytes;  ///< those bytes by link class
  std::vector<int> nodes;                       ///< from 0
  double seconds = 0;                           ///< of the slowest rank, forward and backward
  /// Of softmax attention on each rank: wall time, on GPUs the device's; and of all its threads on
  /// a processor. Empty of a recurrence.
  std::vector<double> attention_seconds = {}, attention_cpu_seconds = {};
  std::string pretended = {};  ///< the model that both are then of
};

/// "[2, 37, 4, 16]".
std::string shown(const runtime::hdf5::Extents& extents);
/// A float32 dataset of four dims, none of them 0: [sequence, token, head, element]. `shapes` ends
/// the message of an error: what a case holds.
runtime::hdf5::Dataset read_tensor(const std::string& path, const runtime::hdf5::File& file,
                                   const char* name, const char* shapes);
void require_sizes(const std::string& path, const runtime::hdf5::Dataset& dataset,
                   const runtime::hdf5::Extents& expected);
/// The attribute `scale`, else 1/sqrt(dim).
double read_scale(const std::string& path, const runtime::hdf5::File& file, std::int64_t dim);
/// The mask of one sequence, from the numbers asked for and the datasets it takes. Error(config)
/// for an unknown mask, and for a number that is missing, wrong or not used by the mask.
attention::HeadMasks read_mask(const std::string& path, const runtime::hdf5::File& file,
                               const MaskRequest& request, std::int64_t tokens, std::int64_t heads);

/// Throws Error(usage) when `path` is the case itself; else as OutputFile does. For use before
/// anything is computed.
runtime::OutputFile result_file(const std::string& path, const std::string& case_path,
                                runtime::Existing existing);

/// Writes results and figures. The file appears, or replaces an older one, only when it is
/// complete.
void write_result_file(const runtime::OutputFile& output, const ReplayFigures& figures,
                       const std::string& scheme, const std::string& layout,
                       const std::function<void(runtime::hdf5::File&)>& write_results);

}  // namespace longhaul::launch

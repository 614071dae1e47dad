#pragma once
// The case and the result file of `longhaul attention`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/case_file.h"

namespace longhaul::launch {

/// What a case file holds, in global token order: row b * S + s of [B, S, ...].
struct AttentionCase {
  std::int64_t batch = 0, seq_len = 0;
  std::int64_t heads = 0, kv_heads = 0, dim = 0, value_dim = 0;
  std::vector<float> q, k, v;
  bool has_dout = false;  ///< then gradients are wanted too
  std::vector<float> dout;
  std::vector<float> sinks;  ///< a logit for each query head, or none
  double scale = 1;
  attention::HeadMasks mask;  ///< of all batch rows, one after another

  std::int64_t tokens() const { return batch * seq_len; }
};

/// Reads and checks a case with a mask of attention/named_masks.h. A number that is given counts
/// before the dataset that could stand for it; datasets that the mask does not take are not read.
/// Throws Error(data) naming the dataset and what is wrong with it, Error(config) for an unknown
/// mask, and for a number that is missing, wrong or not used by the mask.
AttentionCase read_attention_case(const std::string& path, const MaskRequest& mask);

struct AttentionResult {
  /// Global token order; lse [B*S, H], its high part, none for a sigmoid; gradients empty without
  /// dout.
  std::vector<float> out, lse, dq, dk, dv;
  std::vector<float> dsinks;       ///< [H]; empty without sinks
  std::vector<std::int64_t> area;  ///< per rank: (query, key) pairs of its queries; of one head, or
                                   ///< of all where their masks differ
  ReplayFigures figures;
};

/// Writes lse as [B, H, S], everything else as in the case; as write_result_file().
void write_attention_result(const runtime::OutputFile& output, const AttentionCase& input,
                            const AttentionResult& result, const std::string& scheme,
                            const std::string& layout);

}  // namespace longhaul::launch

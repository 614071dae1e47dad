#pragma once
// The case and the result file of a recurrence's replay: `longhaul attention --kind`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/linear.h"
#include "launch/case_file.h"
#include "launch/named_tensor.h"

namespace longhaul::launch {

/// What a case file holds, in global token order, shapes as in the file. States are [B,H,D,E], as
/// other programs keep them; the runtime's are [E,H,D] a sequence.
struct LinearCase {
  std::int64_t batch = 0, seq_len = 0;
  std::int64_t key_heads = 0, heads = 0;  ///< H_k, of q and k; H, of v and states
  std::int64_t dim = 0, value_dim = 0;
  /// E, or with --normalize E + 1: the states have a column of their own for the normaliser, last.
  std::int64_t state_columns = 0;
  std::vector<float> q, k;       ///< [B,S,H_k,D]
  std::vector<float> v, dout;    ///< [B,S,H,E]; dout empty: none
  std::vector<float> log_decay;  ///< [H], [B,S,H] or [B,S,H,D], as the kind wants; empty: none
  std::vector<float> beta;       ///< [B,S,H], of a delta rule
  std::vector<float> initial_state, dfinal_state;  ///< [B,H,D,state_columns]; empty: none
  double scale = 1;
  attention::HeadMasks mask;  ///< of all batch rows, one after another

  std::int64_t tokens() const { return batch * seq_len; }
  /// Gradients are wanted: of the outputs, the final state, or both.
  bool backward() const { return !dout.empty() || !dfinal_state.empty(); }
  std::vector<std::int64_t> log_decay_sizes(attention::Decay decay) const;
  std::vector<std::int64_t> state_sizes() const { return {batch, heads, dim, state_columns}; }
};

/// Reads and checks a case of a recurrence of that kind; datasets that it does not take are not
/// read. Throws Error(data) naming the dataset and what is wrong with it, where a log decay is
/// above 0 its element; Error(config) for a mask that a recurrence cannot follow, for states where
/// there are none, and for sinks.
LinearCase read_linear_case(const std::string& path, const MaskRequest& mask,
                            const attention::Recurrence& recurrence, bool normalize);

struct LinearResult {
  /// Global token order, shapes as in the case; gradients empty without backward, and where the
  /// case has no such input; final_state empty where the recurrence is not causal.
  std::vector<float> out, dq, dk, dv, dlog_decay, dbeta, final_state, dinitial_state;
  ReplayFigures figures;
};
/// Their names and sizes; those that are there.
std::vector<NamedTensor> named(const LinearResult& result, const LinearCase& input,
                               attention::Decay decay);

/// Before anything is computed. Throws Error(data) where a finite element of q, k, v or dout is
/// beyond `dtype`.
void check_numbers(const std::string& path, const LinearCase& input, attention::Decay decay,
                   runtime::DType dtype);
/// What may make a delta rule's state grow without bound, a line each: beta outside [0, 2], and
/// keys longer than 1.01. `k`: as the recurrence reads it.
std::vector<std::string> growth_warnings(const LinearCase& input, const std::vector<float>& k);
/// As of softmax attention (attention_numbers.h).
std::string check_results(const LinearCase& input, const LinearResult& result,
                          attention::Decay decay);

/// Everything as in the case; as write_result_file().
void write_linear_result(const runtime::OutputFile& output, const LinearCase& input,
                         const LinearResult& result, const attention::Recurrence& recurrence,
                         const std::string& scheme, const std::string& layout);

}  // namespace longhaul::launch

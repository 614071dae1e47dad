#pragma once
// One problem of linear attention: seeded inputs, the kernels' results, the reference's, and their
// distance.

#include <cstdint>
#include <string>
#include <vector>

#include "attention/linear.h"
#include "attention/linear_reference.h"

namespace longhaul::test {

/// What the log decays are.
enum class Gates {
  slow,          ///< about -1e-4
  mild,          ///< -1 to 0
  third_strong,  ///< a third in -104 to -40, the others mild
  all_strong,    ///< -12 to -4
  bounded,       ///< -5 sigmoid(x), as Kimi Delta Attention's
  slopes         ///< -2^(-8 (h + 1) / H), constant, Lightning's
};
constexpr Gates kAllGates[] = {Gates::slow,       Gates::mild,    Gates::third_strong,
                               Gates::all_strong, Gates::bounded, Gates::slopes};
const char* name(Gates gates);

/// In the shapes of attention/linear.h, contiguous; rounded to bfloat16 where the activations are.
struct LinearCase {
  attention::Recurrence recurrence{};
  attention::LinearShape shape{};
  std::vector<std::int64_t> starts{};
  std::vector<float> q{}, k{}, v{}, dout{};
  std::vector<float> log_decay{}, beta{};
  std::vector<float> state_in{}, dstate_out{};  ///< [E,H,D]; empty: none

  /// q, k, v, dout normal; scale 1/sqrt(D); under the delta rule k of norm 1 and beta in (0,
  /// beta_max).
  void fill(std::uint32_t seed, Gates gates = Gates::mild, float beta_max = 1);
  void fill_states(std::uint32_t seed);
  /// Rows [begin, end), as a run of its own that no state enters or leaves.
  LinearCase rows(std::int64_t begin, std::int64_t end) const;
  /// Key heads [begin, end) and their heads.
  LinearCase heads(std::int64_t begin, std::int64_t end) const;
};
/// Of a kind of attention::recurrence_kinds(), not filled.
LinearCase linear_case(const std::string& kind, const attention::LinearShape& shape);

struct LinearResult {
  std::vector<float> out{}, state_out{};
  std::vector<float> dq{}, dk{}, dv{}, dlog_decay{}, dbeta{}, dstate_in{};
  bool operator==(const LinearResult& other) const;  // bit for bit
};

/// The calls of linear attention's contract and the stream that they take.
struct LinearDevice {
  runtime::Stream stream;
  decltype(&attention::plan_linear) plan = attention::plan_linear;
  decltype(&attention::fold) fold = attention::fold;
};
/// How the kernels are called.
struct LinearOptions {
  int threads = 1;
  bool strided = false;                  ///< heads outermost, gaps between rows
  const LinearDevice* device = nullptr;  ///< null: the CPU, with `threads`
  std::vector<float> dslopes{};          ///< to add a constant decay's gradient to; empty: 0
  bool extras = true;  ///< asks for what a caller may leave out, which is empty otherwise
};

/// sweep and sweep_backward, into outputs that hold NaN before (a constant decay's
/// gradient: dslopes). Fails the test when an input changes.
LinearResult run_linear(const LinearCase& which, const LinearOptions& options = {});

/// What a run maps a state to.
struct LinearSummary {
  std::vector<float> state{}, transition{};  ///< transition: forward, of a run without starts
};
LinearSummary summarize(const LinearCase& which, const LinearOptions& options = {});
/// N as `state`.
LinearSummary summarize_backward(const LinearCase& which, const LinearOptions& options = {});
/// T in + addend, of [rows, H, D]; an empty addend: zero.
std::vector<float> fold_run(const LinearCase& which, const std::vector<float>& transition,
                            bool transposed, const std::vector<float>& in,
                            const std::vector<float>& addend, const LinearOptions& options = {});

template <class T>
attention::LinearReferenceResult<T> run_linear_reference(const LinearCase& which);

/// RMS relative to the double reference: out and gradients 2e-6, those of log_decay 1e-5 (bfloat16:
/// the same, of the rounded inputs).
void expect_matches_reference(const LinearCase& which, const LinearResult& got,
                              const std::string& what);

}  // namespace longhaul::test

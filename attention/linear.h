#pragma once
// The contract of linear, gated and delta-rule attention on one device: a recurrence over the rows
// of a *run*, consecutive tokens of one sequence axis, in chunks. Everything distributed is built
// from these calls: a run maps the state S that enters it to T S + M, and runs compose.
//
// A state S[E,D] a head, fp32, zero (or a given state) before a document:
//   S' = S_{t-1} diag(exp a_t)                          a: the log decay, <= 0
//   sum rule    S_t = S' + v_t k_t^T
//   delta rule  S_t = S' + beta_t (v_t - S' k_t) k_t^T
//   out_t = scale S_t q_t                               reads the updated state
// Without `causal` (sum rule, no decay): out_t = scale S q_t, S the sum over the whole sequence,
// summarized beforehand: it enters every run and leaves it unchanged, its gradient likewise, and
// there are no starts.
//
// Shapes: q, k[n,H_k,D], v, dout[n,H,E] in the activation dtype (float32 or bfloat16); log_decay
// fp32: [1,H] (Decay::head, alike for all tokens), [n,H] (scalar), [n,H,D] (vector), no data
// (none); beta fp32 [n,H], no data under the sum rule. out[n,H,E], dq, dk[n,H_k,D], dv[n,H,E], the
// gradients of log_decay and beta in their shapes: fp32. H is a multiple of H_k: state head h reads
// key head h * H_k / H. A state is [E,H,D] fp32; a transition [D,H,D] under the delta rule (T, row
// i its output dim), else the sum of the log decays, [1,H,1] (scalar) or [1,H,D] (vector), and no
// data where it is known (none, head). Views may be strided in rows and heads; the last dim is
// contiguous. Any size may be zero; inputs are not modified; results do not depend on the number of
// threads.
//
// Documents begin at `starts`, rising row numbers of the run. There the state is dropped, not
// multiplied by zero: nothing of one document, not even a NaN, reaches another, and the gradient of
// log_decay is exactly 0. Chunks begin at the run's first row and at starts, so a document's bits
// do not depend on its neighbours. No result depends, bit for bit, on later tokens of a document
// (nor, backward, on earlier ones where the mathematics does not). Exponents are never positive.
// Source: Katharopoulos et al. 2020; RetNet (Sun 2023); Mamba-2 (Dao and Gu 2024); GLA (Yang 2024);
// DeltaNet (Yang 2024), Gated DeltaNet (Yang 2025), Kimi Delta Attention (2025); LASP-2 (Sun 2025).

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/block_plan.h"
#include "runtime/tensor.h"

namespace longhaul::attention {

enum class StateRule : unsigned char { sum, delta };
enum class Decay : unsigned char {
  none,
  head,    ///< a constant a head: RetNet, Lightning
  scalar,  ///< a token and head: Mamba-2, Gated DeltaNet
  vector   ///< a token, head and key dim: GLA, KDA
};

/// How a state moves from token to token, and is read.
struct Recurrence {
  StateRule rule = StateRule::sum;
  Decay decay = Decay::none;
  float scale = 1;
  bool causal = true;  ///< false: sum rule without decay only
  bool operator==(const Recurrence&) const = default;
};

/// {"linear", "decay", "scalar", "vector", "delta", "gated_delta", "kda"}.
std::span<const char* const> recurrence_kinds();
/// Of a kind, with scale 1. Throws Error(config) listing the kinds.
Recurrence recurrence_of_kind(const std::string& kind);
/// The kind's name.
const char* kind_of(const Recurrence& recurrence);

/// Width of a transition's row: 0 where it is known (none, head), D or 1. Its rows: D under the
/// delta rule, else 1.
std::int64_t transition_width(const Recurrence& recurrence, std::int64_t dim);
std::int64_t transition_rows(const Recurrence& recurrence, std::int64_t dim);

/// Sizes of a run's tensors.
struct LinearShape {
  std::int64_t rows = 0;
  std::int64_t heads = 0, key_heads = 0;  ///< H, H_k
  std::int64_t dim = 0, value_dim = 0;    ///< D, E
  runtime::DType activation = runtime::DType::float32;
  bool operator==(const LinearShape&) const = default;
};

struct LinearInputs {
  runtime::ConstTensorView q, k, v;
  runtime::ConstTensorView log_decay;  ///< no data without decay
  runtime::ConstTensorView beta;       ///< no data under the sum rule
};

enum class LinearPass : unsigned char { summarize, summarize_backward, sweep, sweep_backward };

struct SummarizeTensors {
  LinearInputs inputs;             ///< forward: without q; backward: without v
  runtime::ConstTensorView dout;   ///< backward
  runtime::TensorView state;       ///< M, or N backward; overwritten
  runtime::TensorView transition;  ///< T, forward, of a run without starts; no data: not wanted
};
struct SweepTensors {
  LinearInputs inputs;
  runtime::ConstTensorView state_in;  ///< no data: zero; not read when the first row is a start
  runtime::TensorView out;            ///< overwritten
  runtime::TensorView state_out;      ///< after the last row; no data: not wanted
};
struct SweepBackwardTensors {
  LinearInputs inputs;
  runtime::ConstTensorView dout;
  runtime::ConstTensorView state_in;    ///< as forward's
  runtime::ConstTensorView dstate_out;  ///< gradient of the state after the last row; no data: zero
  runtime::TensorView dq, dk, dv;       ///< overwritten
  runtime::TensorView dlog_decay;       ///< Decay::head: added to, or no data; others: overwritten
  runtime::TensorView dbeta;            ///< overwritten; no data under the sum rule
  runtime::TensorView dstate_in;        ///< of the state before the first row; no data: not wanted
};

/// A pass over a run, prepared: everything that does not depend on tensors. Immutable.
class LinearPlan : public std::enable_shared_from_this<LinearPlan> {
 public:
  virtual ~LinearPlan() = default;
  LinearPass pass() const { return pass_; }
  const LinearShape& shape() const { return shape_; }
  const Recurrence& recurrence() const { return recurrence_; }
  const BlockPlace& place() const { return place_; }
  const std::vector<std::int64_t>& starts() const { return starts_; }

  /// Temporaries that a call overwrites.
  virtual std::int64_t scratch_bytes() const = 0;
  /// What the device reads of the plan; empty on the CPU.
  virtual std::span<const std::byte> table() const { return {}; }

  /// The run's map, from its last start on: M is the state after the last row when zero enters
  /// (no state ever leaves the run's documents before it), T what becomes of a state that enters a
  /// run without starts. Backward, up to its first start: N is the gradient of the state that
  /// enters when that of the state that leaves is zero.
  void summarize(const SummarizeTensors& tensors, const BlockMemory& memory,
                 const runtime::Stream& stream) const;
  /// Outputs of all rows.
  void sweep(const SweepTensors& tensors, const BlockMemory& memory,
             const runtime::Stream& stream) const;
  /// Gradients of all rows.
  void sweep_backward(const SweepBackwardTensors& tensors, const BlockMemory& memory,
                      const runtime::Stream& stream) const;

 protected:
  LinearPlan(LinearPass pass, const LinearShape& shape, const Recurrence& recurrence,
             std::vector<std::int64_t> starts, const BlockPlace& place)
      : pass_(pass),
        shape_(shape),
        recurrence_(recurrence),
        starts_(std::move(starts)),
        place_(place) {}
  /// Of a plan of that pass; the tensors are checked. Only enqueues; the plan lives until it ran.
  virtual void run(const SummarizeTensors& tensors, const BlockMemory& memory,
                   const runtime::Stream& stream) const;
  virtual void run(const SweepTensors& tensors, const BlockMemory& memory,
                   const runtime::Stream& stream) const;
  virtual void run(const SweepBackwardTensors& tensors, const BlockMemory& memory,
                   const runtime::Stream& stream) const;

 private:
  const LinearPass pass_;
  const LinearShape shape_;
  const Recurrence recurrence_;
  const std::vector<std::int64_t> starts_;
  const BlockPlace place_;
};

/// Throws Error(config) for a recurrence without meaning, heads that do not divide, starts that do
/// not rise or leave the run, and what the device's kernels cannot do (CUDA: the delta rule).
std::shared_ptr<const LinearPlan> plan_linear(LinearPass pass, const LinearShape& shape,
                                              const Recurrence& recurrence,
                                              std::vector<std::int64_t> starts,
                                              const BlockPlace& place);

/// Runs a plan once, with memory of the stream.
void run_once(const std::shared_ptr<const LinearPlan>& plan, const SummarizeTensors& tensors,
              const runtime::Stream& stream);
void run_once(const std::shared_ptr<const LinearPlan>& plan, const SweepTensors& tensors,
              const runtime::Stream& stream);
void run_once(const std::shared_ptr<const LinearPlan>& plan, const SweepBackwardTensors& tensors,
              const runtime::Stream& stream);

/// What becomes of a state in a run: x <- T x + addend.
struct StateMap {
  Recurrence recurrence;
  bool transposed = false;  ///< T^T x, as gradients go
  /// Of the run; no data where it is known, from `slopes` (log_decay [1,H], Decay::head) and
  /// `tokens`.
  runtime::ConstTensorView transition;
  runtime::ConstTensorView slopes;
  std::int64_t tokens = 0;
};
/// out[R,H,D] <- T in + addend, by rows: any R rows of a state (value dims), or of a transition
/// (delta rule: T_2 T_1 is T_1^T of T_2's rows, `transposed`). IEEE fp32 multiply-adds in one
/// order, whatever the rows and heads of the views. `out` may be `in` or the addend; no data for
/// the addend: zero.
void fold(const StateMap& how, runtime::ConstTensorView in, runtime::ConstTensorView addend,
          runtime::TensorView out, const runtime::Stream& stream);

}  // namespace longhaul::attention

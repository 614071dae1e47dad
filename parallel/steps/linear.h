#pragma once
// A recurrence over runs of tokens (attention/linear.h): the steps, what their slots are made of,
// and beside them all that is true of a step.

#include <memory>
#include <optional>
#include <vector>

#include "parallel/shapes.h"
#include "parallel/slot.h"

namespace longhaul::parallel {

struct Count;
struct KernelUse;
struct Program;
class Form;
class Preparation;
class PreparedStep;
class Shadow;

using attention::Mode;

/// What the slots of a linear call are made of. Rows of tokens: q and k have the key heads, the
/// others the value heads. A state has E rows [H,D], a transition attention::transition_rows()
/// rows. Field names are what calls bind.
struct LinearRecords {
  explicit LinearRecords(const Shapes& shapes);
  Record qk, v, dout, out, dqk, dv;
  /// log_decay and beta, whichever the recurrence has per token, and their gradients; no field:
  /// no slot.
  Record gate, dgate;
  Record slopes, dslopes;  ///< one row: log_decay of Decay::head
  Record state, transition;
  Record initial_state, final_state, dinitial_state, dfinal_state;
  std::int64_t state_rows = 0, transition_rows = 0;
  bool has_gate() const { return !gate.fields.empty(); }
  bool has_slopes() const { return slopes_; }
  /// Transitions are slots; else they are known.
  bool has_transition() const { return transition_rows > 0; }

 private:
  bool slopes_ = false;
};

/// What linear calls bind, in this order; what a call has no use for has no data.
///   q, k, v, log_decay, beta, initial_state -> out, states, transitions, final_state
///   q, k, v, log_decay, beta, initial_state, states -> out, final_state      where states are
///   given q, k, v, log_decay, beta, initial_state, states, transitions, dout, dfinal_state
///     -> dq, dk, dv, dlog_decay, dbeta, dinitial_state
Signature linear_forward_signature(const LinearCall& call);
Signature linear_backward_signature();

/// The tokens that a step goes through, consecutive ones, and what it reads of them.
struct LinearRun {
  View qk, v;
  std::optional<View> gate, slopes;
  std::vector<std::int64_t> starts;  ///< rows of the views at which a document begins
  attention::Recurrence recurrence;
};

/// state <- M of the run and transition <- T; backward, state <- N.
struct Summarize {
  static constexpr const char* kName = "Summarize";
  static constexpr bool kOnChannel = false;
  LinearRun run;
  std::optional<View> dout;  ///< given: backward
  View state;
  std::optional<View> transition;
};

/// What a Fold goes through: x <- T x + state.
struct FoldLink {
  View state;
  std::optional<View> transition;  ///< where it is not known
  std::int64_t tokens = 0;         ///< of the runs that it stands for: where it is known
  /// Nothing of before comes through: x <- state.
  bool reset = false;
};
/// Which way states go through a fold.
struct FoldWay {
  attention::Recurrence recurrence;
  bool transposed = false;  ///< T^T, as gradients go
  std::optional<View> slopes;
};
/// out <- the links in order, from `in`; without it the first link is a reset, or has nothing
/// before it that could come through. All views of states are the same rows and heads of one.
/// With `out_transition` (T of all links together), the first link has its own, too.
struct Fold {
  static constexpr const char* kName = "Fold";
  static constexpr bool kOnChannel = false;
  std::vector<FoldLink> links;
  std::optional<View> in;
  View out;
  FoldWay way;
  std::optional<View> out_transition;
};

/// out <- the outputs of the run's tokens, and the state after them.
struct Sweep {
  static constexpr const char* kName = "Sweep";
  static constexpr bool kOnChannel = false;
  LinearRun run;
  std::optional<View> state_in;
  View out;
  std::optional<View> state_out;
};

/// What goes backward through a run.
struct RunGradients {
  View dout;
  std::optional<View> state_in, dstate_out;
  View dqk, dv;
  std::optional<View> dgate;
  std::optional<View> dslopes;
  Mode dslopes_mode = Mode::write;
  std::optional<View> dstate_in;
};
/// Gradients of everything that the run's tokens read, and of the state before them.
struct SweepBackward {
  static constexpr const char* kName = "SweepBackward";
  static constexpr bool kOnChannel = false;
  LinearRun run;
  RunGradients gradients;
};

std::vector<Access> accesses(const Summarize& step);
std::vector<Access> accesses(const Fold& step);
std::vector<Access> accesses(const Sweep& step);
std::vector<Access> accesses(const SweepBackward& step);

/// What makes it malformed.
void check(const Summarize& step, const Form& form);
void check(const Fold& step, const Form& form);
void check(const Sweep& step, const Form& form);
void check(const SweepBackward& step, const Form& form);

/// What the verifier's shadow values become: a state is a number, a token an affine map of it
/// (verifier/linear_shadow.h), so order counts.
void rehearse(const Summarize& step, Shadow& shadow);
void rehearse(const Fold& step, Shadow& shadow);
void rehearse(const Sweep& step, Shadow& shadow);
void rehearse(const SweepBackward& step, Shadow& shadow);

/// Plans it; what could be refused is refused here.
std::unique_ptr<const PreparedStep> prepare(const Summarize& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const Fold& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const Sweep& step, Preparation& with);
std::unique_ptr<const PreparedStep> prepare(const SweepBackward& step, Preparation& with);

void add_cost(const Summarize& step, const Program& program, int stream, Count& count);
void add_cost(const Fold& step, const Program& program, int stream, Count& count);
void add_cost(const Sweep& step, const Program& program, int stream, Count& count);
void add_cost(const SweepBackward& step, const Program& program, int stream, Count& count);

}  // namespace longhaul::parallel

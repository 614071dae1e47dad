#pragma once
// A scheme is a pure function from masks, layout and shapes to every rank's program; one file each.
// It is named by an expression (expression.h). How to add one is in parallel/README.md.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/disaggregation/tasks.h"
#include "parallel/layout.h"
#include "parallel/schedule.h"
#include "parallel/schemes/expression.h"

// The one list of schemes, in the order in which they are shown. A scheme is a file and a line
// here.
#define LONGHAUL_SCHEMES(SCHEME) \
  SCHEME(ring)                   \
  SCHEME(burst)                  \
  SCHEME(double_ring)            \
  SCHEME(ring_self_attention)    \
  SCHEME(balanced_ring)          \
  SCHEME(all_gather)             \
  SCHEME(ulysses)                \
  SCHEME(usp)                    \
  SCHEME(group_cast)             \
  SCHEME(disaggregated)

// Those of recurrences.
#define LONGHAUL_LINEAR_SCHEMES(SCHEME) \
  SCHEME(lasp)                          \
  SCHEME(lasp2)                         \
  SCHEME(all_scan)                      \
  SCHEME(exscan)

namespace longhaul::parallel {

/// What calls a scheme spreads: softmax attention's, or those of a recurrence.
enum class Family : unsigned char { softmax, linear };

/// What a scheme is a function of. It, and the layout, must outlive the generator made from it.
struct SchemeInputs {
  attention::HeadMasks masks;
  const Layout& layout;
  Shapes shapes;
  Direction direction = Direction::forward;
  /// Of gradient accumulators between ranks; fp32 when empty.
  std::optional<runtime::DType> wire_dtype = {};
  Expression scheme = {};
  AttentionServers servers = {};  ///< read by `disaggregated`
  /// Whether all ranks can read each other's memory: rings of one level then lend what circulates.
  bool lends = false;
};

/// The program of one rank; work that all ranks share is done when the generator is made.
using ProgramGenerator = std::function<Program(int rank)>;

/// What legality depends on: known before any batch.
struct Combination {
  Expression scheme;
  int ranks = 1;
  int heads = 1, kv_heads = 1;
  LayoutKind layout = LayoutKind::contiguous;
  bool causal = true;  ///< no query sees a later key
  Family family = Family::softmax;
  /// Each query sees every earlier token of its document, and itself.
  bool whole_past = true;
};
struct Refusal {
  std::string reason;
  std::vector<Combination> nearest;  ///< what would work, nearest first: legal, all of them
};
/// "layout contiguous or scheme ring": what the nearest legal combinations change.
std::string advice(const Combination& refused, const Refusal& refusal);
/// The same call under another scheme.
Combination under_scheme(Combination combination, const Expression& scheme);

struct RingKind;  // schemes/ring.h

struct Scheme {
  std::string name;
  int channels = 1;
  ProgramGenerator (*prepare)(const SchemeInputs& inputs) = nullptr;
  std::vector<Argument> arguments = {};
  /// Of a scheme that attends in rings of members: the kind of ring that it is. So it can stand
  /// where an argument of type `ring` is declared.
  RingKind (*ring)(const Expression& scheme, int members, const Shapes& shapes,
                   std::optional<runtime::DType> wire_dtype) = nullptr;
  /// Empty where every combination is legal.
  std::optional<Refusal> (*refuse)(const Combination& combination) = nullptr;
  /// Of a legal combination: its scheme with what it chooses itself, such as degrees, written out.
  Expression (*resolve)(const Combination& combination) = nullptr;
  Family family = Family::softmax;
  /// Its axis is data x context: a call is one of the sequences of all data ranks.
  bool spans_data = false;
  std::string legality = "every mask, layout and number of ranks";  ///< in words, for the table
};

// NAME_scheme, defined in the scheme's file, for each name of the list.
#define DECLARE(name) extern const Scheme name##_scheme;
LONGHAUL_SCHEMES(DECLARE)
LONGHAUL_LINEAR_SCHEMES(DECLARE)
#undef DECLARE

/// Throws Error(config) listing the known schemes.
const Scheme& scheme_from_name(const std::string& name);
std::vector<std::string> scheme_names(Family family = Family::softmax);
/// "double_ring(outer=, inner=, backward=auto|ring|burst)": how it is written; what has no default
/// is chosen where it is not given.
std::string signature(const Scheme& scheme);

/// The expression in canonical form: arguments in declared order, none that has its default. Throws
/// Error(config) with the place in the text, what is wrong there and what was expected, and for
/// what others call a scheme (schemes/other_names.h) with its name here. `policies` are what else
/// the caller would have taken.
Expression parse_scheme(const std::string& text, const std::vector<std::string>& policies = {},
                        Family family = Family::softmax);
/// The canonical form of an expression that is made of schemes and arguments which exist.
Expression canonical(const Expression& scheme);
/// Canonical, with what the scheme chooses itself written out: the name of what runs. Of a legal
/// combination.
Expression resolved(const Combination& combination);

std::optional<Refusal> refuse(const Combination& combination);
/// Throws Error(config) with the reason and the nearest legal choice.
void check_legal(const Combination& combination);
/// True when no query sees a later key.
bool is_causal(const attention::HeadMasks& masks);
/// True when all heads' queries see every earlier token of their document, and no other.
bool sees_whole_past(const attention::HeadMasks& masks);

/// What `inputs` ask of their scheme.
Combination combination_of(const SchemeInputs& inputs);
/// The generator of inputs.scheme. Throws Error(config) for an illegal combination.
ProgramGenerator prepare(const SchemeInputs& inputs);
/// All ranks' programs, for the verifier and for counting.
Schedule build_schedule(const SchemeInputs& inputs);

// The slots that every softmax scheme is called with (linear ones: schemes/linear_runs.h); the
// executor binds them to the caller's tensors by these names.
//   forward:  q (input), kv or k and v (inputs) -> out (output, partial)
//   backward: q_bundle (input), kv or k and v (inputs) -> dq (output), dkv (output)
Slot input_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                int rank);
Slot output_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                 int rank);

}  // namespace longhaul::parallel

#pragma once
// A scheme is a pure function from masks, layout and shapes to every rank's program; one file each.
// How to add one is in parallel/README.md.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/layout.h"
#include "parallel/schedule.h"
#include "runtime/config/scheme_names.h"

namespace longhaul::parallel {

/// Which ranks of a two-level scheme sit next to each other.
enum class Nesting : unsigned char {
  heads_inside,  ///< rank = ring position * U + head position: the all-to-all runs inside a node
  ring_inside    ///< rank = head position * R + ring position
};
/// What circulates in a ring's backward.
enum class BackwardRing : unsigned char {
  ring,      ///< keys, values and their gradients
  burst,     ///< queries, dout, LSE, delta and dq
  automatic  ///< whichever sends fewer bytes
};

const char* name(Nesting nesting);
const char* name(BackwardRing backward);

/// What only some schemes read; the table of schemes says which.
enum class SchemeOption : unsigned char { degrees, nesting, around, backward };
constexpr SchemeOption kSchemeOptions[] = {SchemeOption::degrees, SchemeOption::nesting,
                                           SchemeOption::around, SchemeOption::backward};
const char* name(SchemeOption option);

/// A scheme's name and its options.
struct SchemeOptions {
  std::string name = "ring";
  int outer = 0, inner = 0;  ///< degrees of two levels; 0: chosen, see resolve_degrees()
  Nesting nesting = Nesting::heads_inside;
  std::string around = "ring";  ///< the scheme inside usp
  BackwardRing backward = BackwardRing::automatic;
  bool operator==(const SchemeOptions&) const = default;
};
/// From a text of the configuration: "outer=2,inner=4", either alone, or "auto"; the name of a
/// nesting, a scheme that usp can be around, a backward. Throws Error(config) with what is
/// expected.
void set_option(SchemeOptions& options, SchemeOption option, const std::string& text);
/// False where the option has its default.
bool is_set(const SchemeOptions& options, SchemeOption option);
/// To its default.
void reset(SchemeOptions& options, SchemeOption option);

/// What a scheme is a function of. It, and the layout, must outlive the generator made from it.
struct SchemeInputs {
  attention::HeadMasks masks;
  const Layout& layout;
  Shapes shapes;
  Direction direction = Direction::forward;
  /// Of gradient accumulators between ranks; fp32 when empty.
  std::optional<runtime::DType> wire_dtype = {};
  SchemeOptions options = {};
};

/// The program of one rank; work that all ranks share is done when the generator is made.
using ProgramGenerator = std::function<Program(int rank)>;

/// What legality depends on: known before any batch.
struct Combination {
  SchemeOptions options;
  int ranks = 1;
  int heads = 1, kv_heads = 1;
  LayoutKind layout = LayoutKind::contiguous;
  bool causal = true;  ///< no query sees a later key
};
struct Refusal {
  std::string reason;
  std::vector<Combination> nearest;         ///< what would work, nearest first: legal, all of them
  std::optional<SchemeOption> option = {};  ///< the one to blame, if any
};
/// "layout contiguous or scheme ring": what the nearest legal combinations change.
std::string advice(const Combination& refused, const Refusal& refusal);
/// The same call under a scheme without options.
Combination under_scheme(Combination combination, const std::string& scheme);

struct Scheme {
  std::string name;
  int channels = 1;
  ProgramGenerator (*prepare)(const SchemeInputs& inputs) = nullptr;
  std::vector<SchemeOption> reads = {};  ///< others must keep their defaults
  bool inside_usp = false;               ///< `around` may name it
  /// Empty where every combination is legal.
  std::optional<Refusal> (*refuse)(const Combination& combination) = nullptr;
  std::string legality = "every mask, layout and number of ranks";  ///< in words, for the table
};

// NAME_scheme, defined in the scheme's file, for each name of the list.
#define DECLARE(name) extern const Scheme name##_scheme;
LONGHAUL_SCHEMES(DECLARE)
#undef DECLARE

/// Throws Error(config) listing the known schemes.
const Scheme& scheme_from_name(const std::string& text);
std::vector<std::string> scheme_names();

/// Whether the scheme, or the one that it is around, has a use for the option.
bool reads(const SchemeOptions& options, SchemeOption option);
/// "double_ring or usp": who has a use for it.
std::string readers(SchemeOption option);
/// Also for options that the scheme has no use for.
std::optional<Refusal> refuse(const Combination& combination);
/// Throws Error(config) with the reason and the nearest legal choice.
void check_legal(const Combination& combination);
/// True when no query sees a later key.
bool is_causal(const attention::HeadMasks& masks);

/// The generator of inputs.options.name. Throws Error(config) for an illegal combination.
ProgramGenerator prepare(const SchemeInputs& inputs);
/// All ranks' programs, for the verifier and for counting.
Schedule build_schedule(const SchemeInputs& inputs);

// The slots that every softmax scheme is called with; the executor binds them to the caller's
// tensors by these names.
//   forward:  q (input), kv or k and v (inputs) -> out (output, partial)
//   backward: q_bundle (input), kv or k and v (inputs) -> dq (output), dkv (output)
Slot input_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                int rank);
Slot output_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                 int rank);

}  // namespace longhaul::parallel

#pragma once
// A scheme is a pure function from mask, layout and shapes to every rank's program; one file each.
// How to add one is in parallel/README.md.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/layout.h"
#include "parallel/schedule.h"

namespace longhaul::parallel {

/// What a scheme is a function of. The referenced objects must outlive the generator made from
/// them.
struct SchemeInputs {
  const attention::Mask& mask;
  const Layout& layout;
  Shapes shapes;
  Direction direction = Direction::forward;
  std::optional<runtime::DType> wire_dtype =
      {};  ///< of circulating gradient accumulators; fp32 when empty
};

/// The program of one rank; work that all ranks share is done when the generator is made.
using ProgramGenerator = std::function<Program(int rank)>;

struct Scheme {
  std::string name;
  int channels = 1;
  ProgramGenerator (*prepare)(const SchemeInputs& inputs) = nullptr;
};

/// Throws Error(config) listing the known schemes.
const Scheme& scheme_from_name(const std::string& text);
std::vector<std::string> scheme_names();

/// All ranks' programs, for the verifier and for counting.
Schedule build_schedule(const Scheme& scheme, const SchemeInputs& inputs);

// The slots that every softmax scheme is called with; the executor binds them to the caller's
// tensors by these names.
//   forward:  q (input), kv (input) -> out (output, partial)
//   backward: q_bundle (input), kv (input) -> dq (output), dkv (output)
Slot input_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank);
Slot output_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank);

ProgramGenerator prepare_ring(const SchemeInputs& inputs);

}  // namespace longhaul::parallel

#pragma once
// Policies choose a scheme; they are no schemes themselves.

#include <optional>
#include <string>
#include <vector>

#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

std::vector<std::string> policy_names();

/// The scheme that a text of the configuration asks for: what a policy chooses, or the expression
/// that it is. `auto`: burst where its backward sends fewer bytes than ring's, else ring. Throws
/// Error(config) as parse_scheme().
Expression choose_scheme(const std::string& text, const Shapes& shapes,
                         std::optional<runtime::DType> wire_dtype);

/// A scheme of recurrences.
struct LinearChoice {
  Expression scheme;
  std::string reason;  ///< why a policy chose it, in words; empty of an expression
};
/// The same of a recurrence (shapes.linear) over `rows` tokens a rank, of P ranks and G key heads.
/// `auto`, the first of these that applies:
///   lasp2              one rank, or not causal;
///   lasp(replay=true)  a delta rule, and P - 1 <= G / 2: sweeps that pass the state on by heads
///                      wait (P - 1) / G of a sweep for each other, where summaries cost half of
///                      one, forward and backward together;
///   lasp2              a rank gathers at most the bytes of its own q, k and v: over one document
///                      P - 1 states and P - 2 transitions (contiguous), or 2 P - 3 of both
///                      (zigzag, which stands for the other layouts too);
///   all_scan           one state a run arrives, whatever P.
/// (By the formulae of LASP-2, Sun et al. 2025, and ZeCO, Chou et al. 2025, with the transitions of
/// a delta rule.)
LinearChoice choose_linear_scheme(const std::string& text, const Shapes& shapes, LayoutKind layout,
                                  int ranks, std::int64_t rows);

}  // namespace longhaul::parallel

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
/// The same of a recurrence (shapes.linear) over `rows` tokens a rank. `auto`:
/// - one rank, or not causal: lasp2;
/// - under a delta rule, lasp(replay=true) while P - 1 <= G / 2, G the key heads: head group by
/// head
///   group its sweeps wait (P - 1) / G of a sweep for each other, where summaries cost half of one
///   (forward and backward together);
/// - lasp2 while what it gathers is at most the rank's own q, k and v, in bytes: of a chain of n
///   runs (P contiguous, else two a rank) up to n - 1 states and transitions, the first run's
///   transition and those that are known apart;
/// - else all_scan, which receives one state a run whatever P.
/// (Formulae of LASP-2, Sun et al. 2025, ZeCO, Chou et al. 2025, with a delta rule's transitions.)
LinearChoice choose_linear_scheme(const std::string& text, const Shapes& shapes, LayoutKind layout,
                                  int ranks, std::int64_t rows);

}  // namespace longhaul::parallel

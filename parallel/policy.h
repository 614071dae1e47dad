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

}  // namespace longhaul::parallel

#pragma once
// What is legal: the tables of `longhaul validate --legality`.

#include <string>

namespace longhaul::launch {

/// Markdown: every scheme x mask x layout, scheme x heads x ranks, the rules in words, and why the
/// rest is refused.
std::string legality_table();

}  // namespace longhaul::launch

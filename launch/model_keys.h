#pragma once
// The keys of [model]: those of all families together.

#include <string>
#include <vector>

#include "runtime/config/schema.h"

namespace longhaul::launch {

/// With what each family that uses them takes their absence for.
std::vector<runtime::ConfigKey> model_keys();

/// The families that use a key of [model] or of a table in it; none for a key of all families and
/// for other sections.
std::vector<std::string> families_of_key(const runtime::ConfigKey& key);

}  // namespace longhaul::launch

#pragma once
// Paths as people write them.

#include <string>

namespace longhaul::runtime {

struct ExpandedPath {
  std::string path;
  std::string wrong;  ///< why there is none; empty for nothing
};

/// The path with what a shell would expand: `~` at its start, alone or before a `/`, is $HOME;
/// `$NAME` and `${NAME}` anywhere are environment variables, every one that is set and not empty;
/// `$$` is a dollar sign. Wrong: a variable that is unset or empty, and the home of another user
/// (`~name`).
ExpandedPath expand_path(const std::string& text);
/// What expands to this path: dollar signs are doubled.
std::string unexpanded_path(const std::string& path);

}  // namespace longhaul::runtime

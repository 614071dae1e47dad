#pragma once
// The command line: verbs and their options.

namespace longhaul::launch {

/// Parses the command line and runs the verb. Returns the exit code; 64 for a wrong command line,
/// which it explains on stderr. What the verb throws passes through.
int run_command_line(int argc, const char* const* argv);

}  // namespace longhaul::launch

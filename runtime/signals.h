#pragma once
// "Stop at the next step": SIGUSR1, SIGTERM, SIGINT and SIGHUP set a flag that the training loop
// reads.

namespace longhaul::runtime::signals {

/// Handles the four signals from now on, in the whole process, but for those that it was started
/// with ignored (nohup, a shell's background jobs). A second SIGINT ends the process at once, with
/// exit code 130. A console or file that is closed no longer ends it (SIGPIPE is ignored). Call
/// once, before threads start: a system call that a signal interrupts is restarted. Throws
/// Error(internal).
void install();

/// The last of the four signals that arrived since install() or clear(), or 0. Any thread.
int requested();
void clear();

}  // namespace longhaul::runtime::signals

#pragma once
// "Stop at the next step": SIGUSR1 and SIGTERM set a flag that the training loop reads.

namespace longhaul::runtime::signals {

/// Handles SIGUSR1 and SIGTERM from now on, in the whole process. Call once, before threads start:
/// a system call that a signal interrupts is restarted. Throws Error(internal).
void install();

/// The last of the two signals that arrived since install() or clear(), or 0. Any thread.
int requested();
void clear();

}  // namespace longhaul::runtime::signals

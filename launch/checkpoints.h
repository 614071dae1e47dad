#pragma once
// What a run asks of its checkpoint folder before its first step.

#include <string>

#include "launch/train_config.h"
#include "launch/trainer.h"
#include "runtime/error.h"
#include "runtime/stream.h"

namespace longhaul::launch {

/// What to do when checkpoint.folder cannot be written.
constexpr const char* kCheckpointRemedy =
    "give another folder or the right to write there, or train without checkpoints "
    "(checkpoint.enable = false)";

/// Proves that checkpoints can be written where checkpoint.folder says, by every rank that trains;
/// nothing without checkpoints, or on an attention server. Returns the bytes of one. Collective.
/// Throws Error(io), on every rank alike, with what to do.
std::int64_t prove_checkpoints(Trainer& trainer, const TrainConfig& config,
                               const runtime::Stream& stream);

/// "1.2 GiB each, every 500 steps, the newest 2 kept; 34.0 GiB free in out/checkpoints", with a
/// line of warning where the folder fills up before the end of the run; "none: ..." without
/// checkpoints. From the step that the trainer has reached. Collective; the same on all ranks that
/// train. Throws Error(io) when not even the next one fits.
std::string checkpoint_room(Trainer& trainer, const TrainConfig& config,
                            std::int64_t checkpoint_bytes, const runtime::Stream& stream);

}  // namespace longhaul::launch

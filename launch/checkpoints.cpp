#include "launch/checkpoints.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/metrics.h"
#include "runtime/comm/gather.h"
#include "runtime/config/toml_document.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint.h"
#include "runtime/io/checkpoint_room.h"
#include "runtime/io/disk.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

using runtime::ExitCode;
using runtime::fail;
using runtime::size_text;

std::int64_t prove_checkpoints(Trainer& trainer, const TrainConfig& config,
                               const runtime::Stream& stream) {
  if (!config.checkpoint.enable || trainer.serves()) return 0;
  try {
    return runtime::prove_checkpoint_folder(checkpoint_folder(config), trainer.checkpoint_slices(),
                                            trainer.trainers(), stream);
  } catch (const runtime::Error& error) {
    if (error.code() != ExitCode::io) throw;
    fail(ExitCode::io, "checkpoint.folder = ", runtime::quote_toml(config.checkpoint.folder),
         ": checkpoints could not be written: ", error.what(), "; ", kCheckpointRemedy);
  }
}

std::string checkpoint_room(Trainer& trainer, const TrainConfig& config,
                            std::int64_t checkpoint_bytes, const runtime::Stream& stream) {
  if (!config.checkpoint.enable) return "none: checkpoint.enable is false";
  if (trainer.serves()) return "none: an attention server has nothing to save";
  runtime::Communicator& world = trainer.trainers();
  const std::string folder = checkpoint_folder(config);
  runtime::CheckpointPlan plan{.checkpoint_bytes = checkpoint_bytes,
                               .keep_latest_k = config.checkpoint.keep_latest_k,
                               .interval = config.checkpoint.interval,
                               .completed_steps = trainer.completed_steps(),
                               .steps = config.training.steps};
  // What rank 0 sees: the others must come to the same judgement.
  std::vector<double> seen{-1, 0};
  if (world.rank() == 0) {
    const std::optional<std::int64_t> free = runtime::free_bytes(folder);
    if (free) seen[0] = static_cast<double>(*free);
    seen[1] = static_cast<double>(
        std::ranges::count_if(runtime::list_checkpoints(folder),
                              [&](std::int64_t step) { return step <= plan.completed_steps; }));
  }
  seen = runtime::gather_numbers(world, seen, stream, runtime::deadline_in(3600)).front();
  const bool known = seen[0] >= 0;
  plan.free_bytes = static_cast<std::int64_t>(seen[0]);
  plan.existing = static_cast<std::int64_t>(seen[1]);

  std::string text = fmt::format(
      "{} each, every {} steps, {}; {} free in {}", size_text(checkpoint_bytes),
      grouped(plan.interval),
      plan.keep_latest_k == 0 ? "all kept" : fmt::format("the newest {} kept", plan.keep_latest_k),
      known ? size_text(plan.free_bytes) : "unknown space", folder);
  if (!known || plan.remaining() == 0) return text;
  const std::int64_t fills_at = plan.fills_at();
  if (plan.fitting() == 0) {
    fail(ExitCode::io, "no space left on ", folder, " for a checkpoint: one takes ",
         size_text(checkpoint_bytes), ", and ", size_text(plan.free_bytes),
         " are free; free space there, set checkpoint.folder to another disk, or train without "
         "checkpoints (checkpoint.enable = false)");
  }
  if (fills_at > 0) {
    text += fmt::format(
        "\nwarning  the disk of {} is full before the checkpoint of step {}: {} more would be "
        "written before an older one goes, {}, and {} are free",
        folder, grouped(fills_at), plan.needed(), size_text(plan.needed() * checkpoint_bytes),
        size_text(plan.free_bytes));
  }
  return text;
}

}  // namespace longhaul::launch

#include "launch/checkpoint_path.h"

#include <fmt/format.h>

#include <vector>

#include "runtime/io/checkpoint.h"

namespace longhaul::launch {

namespace fs = std::filesystem;

std::optional<CheckpointPlace> find_checkpoint(const fs::path& named) {
  fs::path path = fs::absolute(named).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();  // "step-00000010/"
  for (const std::int64_t step : runtime::list_checkpoints(path.parent_path())) {
    if (path.filename() == fmt::format("step-{:08}", step))
      return CheckpointPlace{path.parent_path(), step};
  }
  for (const fs::path& folder : {path, path / "checkpoints"}) {
    const std::vector<std::int64_t> steps = runtime::list_checkpoints(folder);
    if (!steps.empty()) return CheckpointPlace{folder, steps.back()};
  }
  return std::nullopt;
}

}  // namespace longhaul::launch

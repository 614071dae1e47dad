#include "runtime/io/checkpoint_room.h"

#include <algorithm>
#include <system_error>

#include "runtime/comm/gather.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint_manifest_impl.h"
#include "runtime/io/disk.h"

namespace longhaul::runtime {
namespace {

/// What HDF5 and the manifest add to a slice: headers, the index of its chunks, its entry.
constexpr std::int64_t kBytesOfASlice = 3400;

constexpr double kSeconds = 600;  // a folder that takes longer to answer is no use

void create(const std::filesystem::path& folder) {
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code) fail(ExitCode::io, folder.string(), ": cannot be created: ", code.message());
  if (!std::filesystem::is_directory(folder, code))
    fail(ExitCode::io, folder.string(), ": is no folder");
}

}  // namespace

std::int64_t prove_checkpoint_folder(const std::filesystem::path& folder,
                                     std::span<const TensorSlice> slices, Communicator& comm,
                                     const Stream& stream) {
  const Deadline deadline = deadline_in(kSeconds);
  const auto phase = [&](const auto& work) {
    checkpoint::agree(checkpoint::attempt(work), comm, stream, deadline);
  };
  phase([&]() -> std::string {
    if (comm.rank() == 0) create(folder);
    return "";
  });
  phase([&]() -> std::string {
    std::error_code code;
    if (!std::filesystem::is_directory(folder, code)) {
      fail(ExitCode::io, folder.string(),
           ": rank 0 has made this folder, and it is not here: it must lie where all hosts see it");
    }
    prove_writable(folder);
    return "";
  });
  double bytes = 0;
  for (const TensorSlice& slice : slices)
    bytes += static_cast<double>(slice.view.bytes() + kBytesOfASlice);
  double sum = 0;
  for (const auto& rank : gather_numbers(comm, {bytes}, stream, deadline)) sum += rank[0];
  return static_cast<std::int64_t>(sum);
}

std::int64_t CheckpointPlan::remaining() const {
  if (completed_steps >= steps) return 0;
  return (steps + interval - 1) / interval - completed_steps / interval;
}

std::int64_t CheckpointPlan::needed() const {
  if (keep_latest_k == 0) return remaining();
  return std::min(remaining(), std::max<std::int64_t>(1, keep_latest_k - existing + 1));
}

std::int64_t CheckpointPlan::fitting() const {
  return checkpoint_bytes > 0 ? free_bytes / checkpoint_bytes : needed();
}

std::int64_t CheckpointPlan::fills_at() const {
  if (fitting() >= needed()) return 0;
  return std::min(steps, (completed_steps / interval + fitting() + 1) * interval);
}

}  // namespace longhaul::runtime

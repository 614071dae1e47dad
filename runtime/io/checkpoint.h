#pragma once
// Sharded checkpoints of named global tensors. Nothing in one belongs to a rank: whatever slices
// were saved, any slice can be read. Format and commit protocol: runtime/io/README.md.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/io/host_rows.h"
#include "runtime/tensor.h"

namespace longhaul::runtime {

constexpr std::int64_t kCheckpointFormatVersion = 1;

/// Everything about a training run's state that is not a tensor.
struct CheckpointMetadata {
  std::int64_t step = 0;
  std::int64_t tokens = 0;          ///< trained on so far
  std::int64_t cursor = 0;          ///< next sequence, see Sequences
  std::int64_t optimizer_step = 0;  ///< updates applied; behind `step` when some were skipped
  std::uint64_t seed = 0;
  std::string config;                        ///< resolved configuration, as text
  std::string corpus_digest;                 ///< Corpus::digest()
  std::map<std::string, std::string> extra;  ///< whatever else the caller wants back
  bool operator==(const CheckpointMetadata&) const = default;
};

/// A slice of a global tensor that this rank writes. A replicated slice must be listed by one rank
/// only.
struct TensorSlice {
  std::string name;                 ///< letters, digits, '.', '_', '-'; at most 200
  std::vector<std::int64_t> sizes;  ///< of the global tensor; 1 to 5 dims
  std::vector<std::int64_t> start;  ///< of the slice; its sizes are the view's
  /// In host memory, any strides, its contents ready; or contiguous on the device of `stream`,
  /// ready in the stream's order.
  ConstTensorView view;
  std::optional<Stream> stream = std::nullopt;
  /// Gives the rows of a slice that lies nowhere, of whose view only sizes and dtype count; twice,
  /// since what is written is compared. Empty for others.
  RowReader reader = {};
};

struct SaveOptions {
  std::filesystem::path folder;
  std::int64_t keep_latest_k = 0;  ///< 0 keeps all
  /// For the whole save. Ranks wait for slower ones until then, whatever the communicator's
  /// timeout.
  double timeout_seconds = 3600;
  /// Of slices that lie on a device, so much is in host memory at a time, or one row.
  std::int64_t staged_bytes = kStagedBytes;
  /// Rank 0 calls it right before each change to what others may see in the folder. It throws Error
  /// when the folder is no longer the caller's: the save then removes its own attempt, changes
  /// nothing else there, and throws that error on every rank. Also asked when a save fails, since
  /// that may be why.
  std::function<void()> before_change = [] {};
};

/// Writes a checkpoint and returns when it is committed and read back; then removes checkpoints of
/// earlier steps beyond keep_latest_k. Collective; blocks the host; `stream` is a CPU stream for
/// the exchange. All ranks give equal metadata. An existing checkpoint of the same step is
/// replaced. Throws: on every rank alike, Error(io) when a rank could not write (the attempt is
/// removed, older checkpoints are as they were; the error says which step is safe, and first that
/// the disk is full where it is), Error(internal) when slices overlap or leave holes, Error(hang)
/// naming the ranks that have not come to the end of a phase in time. A process that may hit a file
/// size limit must ignore SIGXFSZ, or the signal ends it.
void save_checkpoint(const SaveOptions& options, const CheckpointMetadata& metadata,
                     std::span<const TensorSlice> slices, Communicator& comm, const Stream& stream);

/// Steps of the checkpoints in a folder, ascending; attempts that never committed are not among
/// them. Empty for a folder that does not exist.
std::vector<std::int64_t> list_checkpoints(const std::filesystem::path& folder);

/// Moves the checkpoints of steps after `step` to FOLDER/aside-N, the first free number, so that a
/// run that starts before them does not mix with them. (Inside of the folder, which may be a mount
/// point or a link to another disk.) Returns that folder; empty when there was nothing to move. Not
/// collective: one rank calls it while the others wait. Throws Error(io).
std::filesystem::path set_aside_newer_checkpoints(const std::filesystem::path& folder,
                                                  std::int64_t step);

struct TensorInfo {
  std::string name;
  DType dtype = DType::float32;
  std::vector<std::int64_t> sizes;
  std::int64_t slices = 0;  ///< in how many pieces it was saved
};

/// A checkpoint whose manifest and files have all been found intact. Thread-safe.
/// Throws: Error(data) naming the damaged or missing file and what to do; Error(config) for a step
/// that is not there; Error(io) when reading fails.
class Checkpoint {
 public:
  static Checkpoint open(const std::filesystem::path& folder, std::int64_t step);
  /// Collective: ranks share the digesting of the files, and fail or succeed together.
  static Checkpoint open(const std::filesystem::path& folder, std::int64_t step, Communicator& comm,
                         const Stream& stream);
  /// Collective: the newest checkpoint as rank 0 sees it, or none in an empty folder. A damaged one
  /// is refused, never skipped.
  static std::optional<Checkpoint> open_newest(const std::filesystem::path& folder,
                                               Communicator& comm, const Stream& stream);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;
  const CheckpointMetadata& metadata() const;
  /// Sorted by name.
  std::span<const TensorInfo> tensors() const;
  bool has(const std::string& name) const;
  const TensorInfo& tensor(const std::string& name) const;
  /// File names and bytes, manifest excluded.
  std::vector<std::pair<std::string, std::int64_t>> files() const;

  /// The slice at `start` of the global tensor `name`, of the sizes of `out` (host memory, any
  /// strides, the tensor's dtype). Blocks.
  void read(const std::string& name, std::span<const std::int64_t> start, TensorView out) const;
  /// The same into contiguous memory of a stream's device, behind what the stream has been given so
  /// far. Blocks until `out` is complete. So much is in host memory at a time, or one row.
  void read(const std::string& name, std::span<const std::int64_t> start, TensorView out,
            const Stream& stream, std::int64_t staged_bytes = kStagedBytes) const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace longhaul::runtime

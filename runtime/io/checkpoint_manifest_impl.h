#pragma once
// Private to runtime/io/checkpoint*.cpp: the manifest, its JSON, names on disk, and agreement of
// ranks.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/io/checkpoint.h"
#include "runtime/io/file.h"
#include "runtime/io/hdf5.h"

namespace longhaul::runtime::checkpoint {

inline constexpr const char* kManifestName = "manifest.json";

struct SliceEntry {
  std::int64_t file = 0;  // index into Manifest::files
  std::string dataset;
  std::vector<std::int64_t> start, count;
};
struct TensorEntry {
  std::string name;
  DType dtype = DType::float32;
  std::vector<std::int64_t> sizes;
  std::vector<SliceEntry> slices;
};
struct FileEntry {
  std::string name;
  FileDigest digest;
};
struct Manifest {
  CheckpointMetadata metadata;
  std::vector<FileEntry> files;
  std::vector<TensorEntry> tensors;  // sorted by name
};

/// The file's text, digest included. Throws Error(internal) for text that is not UTF-8.
std::string to_text(const Manifest& manifest);
/// Checks the digest first, then every name, size and slice; slices must cover each tensor exactly
/// once. Throws Error(data) naming `path`.
Manifest from_text(const std::filesystem::path& path, const std::string& text);
/// Throws Error(code) starting with `where` unless names, sizes and slices are sound.
void check(const Manifest& manifest, ExitCode code, const std::string& where);

void tensors_to_json(const std::vector<TensorEntry>& tensors, nlohmann::json& out);
std::vector<TensorEntry> tensors_from_json(const nlohmann::json& json);

bool valid_tensor_name(std::string_view name);
hdf5::Element element_of(DType dtype);
/// "step-00000010"
std::string step_name(std::int64_t step);
/// "rank-00003-of-00004.h5"
std::string rank_file_name(int rank, int ranks);

/// A folder entry's meaning by its name.
enum class EntryKind { committed, replaced, attempt, other };
struct Entry {
  EntryKind kind = EntryKind::other;
  std::int64_t step = -1;
  std::filesystem::path path;
};
/// Entries named like checkpoints, in no order; none for a folder that does not exist.
std::vector<Entry> list_entries(const std::filesystem::path& folder);
/// Where a step lives, or nothing.
std::optional<std::filesystem::path> find_step(const std::filesystem::path& folder,
                                               std::int64_t step);

/// Throws Error(data) unless the file is there, regular, and of the manifest's size; names it.
void check_file_size(const std::filesystem::path& folder, const FileEntry& entry);
/// Throws Error(data) unless size and digest are the manifest's; names the file.
void verify_file(const std::filesystem::path& folder, const FileEntry& entry);
/// Reads and checks a checkpoint folder's manifest.
Manifest read_manifest(const std::filesystem::path& folder);

/// What one rank has to say after a phase: a payload, or why it failed.
struct Report {
  std::string payload;
  ExitCode code = ExitCode::done;
  std::string error;
};
/// Runs `work` and catches what it throws.
template <class Work>
Report attempt(const Work& work);
Report failed(std::exception_ptr error);
/// Everybody's payloads, by rank. If a rank failed, throws its error on every rank (the first
/// rank's). Waits for slower ranks until `deadline`, whatever the communicator's timeout: a phase
/// takes as long as the slowest disk.
std::vector<std::string> agree(const Report& report, Communicator& comm, const Stream& stream,
                               Deadline deadline);

template <class Work>
Report attempt(const Work& work) {
  try {
    return {work(), ExitCode::done, ""};
  } catch (...) {
    return failed(std::current_exception());
  }
}

}  // namespace longhaul::runtime::checkpoint

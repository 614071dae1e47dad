#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/checkpoint_manifest_impl.h"
#include "runtime/io/disk.h"
#include "runtime/size_text.h"

namespace longhaul::runtime {
namespace checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::int64_t kCompareBytes = std::int64_t{64} << 20;

std::vector<std::int64_t> sizes_of(const ConstTensorView& view) {
  return {view.sizes().begin(), view.sizes().end()};
}

void check_slice(const TensorSlice& slice) {
  LONGHAUL_CHECK(valid_tensor_name(slice.name), "tensor name '", slice.name,
                 "'; letters, digits, '.', '_' and '-' are allowed");
  LONGHAUL_CHECK(slice.stream || slice.view.device().kind == DeviceKind::cpu, "tensor '",
                 slice.name, "' lies on ", to_string(slice.view.device()),
                 "; expected a stream of that device beside it");
  const auto dims = static_cast<std::size_t>(slice.view.dims());
  LONGHAUL_CHECK(slice.sizes.size() == dims && slice.start.size() == dims, "tensor '", slice.name,
                 "': a view of ", dims, " dims for a tensor of ", slice.sizes.size());
}

HostRows rows_of(const TensorSlice& slice, std::int64_t staged_bytes) {
  if (slice.reader) return {slice.view, slice.reader, staged_bytes};
  return {slice.view, slice.stream, staged_bytes};
}

/// Rows [begin, end) of a dataset of these sizes.
struct RowBlock {
  std::vector<std::int64_t> start, count;
  RowBlock(const std::vector<std::int64_t>& sizes, std::int64_t begin, std::int64_t end)
      : start(sizes.size(), 0), count(sizes) {
    start[0] = begin;
    count[0] = end - begin;
  }
};

/// Writes this rank's file; the entries' file number is this rank's.
std::vector<TensorEntry> write_rank_file(const fs::path& path, std::span<const TensorSlice> slices,
                                         int rank, std::int64_t staged_bytes) {
  std::vector<TensorEntry> entries;
  std::map<std::string, int> pieces;  // of each name, in this file
  hdf5::File file = hdf5::File::create(path);
  for (const TensorSlice& slice : slices) {
    check_slice(slice);
    TensorEntry entry{slice.name, slice.view.dtype(), slice.sizes, {}};
    if (slice.view.elements() > 0) {
      const int piece = pieces[slice.name]++;
      const std::string dataset = piece == 0 ? slice.name : concat(slice.name, "@", piece);
      const std::vector<std::int64_t> count = sizes_of(slice.view);
      hdf5::Dataset stored = file.create_dataset(dataset, element_of(entry.dtype), count,
                                                 hdf5::Storage::chunked_with_checksums);
      HostRows rows = rows_of(slice, staged_bytes);
      for (std::int64_t begin = 0; begin < rows.count(); begin += rows.most()) {
        const std::int64_t end = std::min(rows.count(), begin + rows.most());
        const RowBlock block(count, begin, end);
        stored.write_bytes(block.start, block.count, element_of(entry.dtype),
                           rows.read(begin, end));
      }
      entry.slices.push_back({rank, dataset, slice.start, count});
    }
    entries.push_back(std::move(entry));
  }
  file.close();
  return entries;
}

/// Compares a dataset with the memory that it was written from, some rows at a time.
void compare_dataset(const hdf5::File& file, const SliceEntry& entry, DType dtype,
                     HostRows& expected) {
  const hdf5::Dataset dataset = file.dataset(entry.dataset);
  const std::int64_t rows = expected.count(), row_bytes = expected.row_bytes();
  const std::int64_t step = std::min(expected.most(), rows_within(kCompareBytes, row_bytes));
  std::vector<std::byte> stored;
  for (std::int64_t row = 0; row < rows; row += step) {
    const RowBlock block(entry.count, row, std::min(rows, row + step));
    stored.resize(static_cast<std::size_t>(block.count[0] * row_bytes));
    dataset.read_bytes(block.start, block.count, element_of(dtype), stored);
    const auto wanted = expected.read(row, row + block.count[0]);
    if (std::memcmp(stored.data(), wanted.data(), stored.size()) != 0) {
      fail(ExitCode::io, file.path().string(), ": dataset '", entry.dataset,
           "' reads back differently from what was written");
    }
  }
}

/// Reads the file back from the device, once. HDF5 may report success after a failed write, so
/// every dataset is compared with memory; the digest goes ahead of HDF5, which finds its pages in
/// the kernel's cache.
FileDigest read_back(const fs::path& path, std::span<const TensorSlice> slices,
                     const std::vector<TensorEntry>& entries, std::int64_t staged_bytes) {
  FileDigester digester(path);
  const hdf5::File file = hdf5::File::open(path);
  std::int64_t written = 0;  // datasets lie in the order in which they were made
  for (std::size_t index = 0; index < entries.size(); ++index) {
    for (const SliceEntry& entry : entries[index].slices) {
      HostRows expected = rows_of(slices[index], staged_bytes);
      written += slices[index].view.bytes();
      digester.advance_to(written);
      compare_dataset(file, entry, entries[index].dtype, expected);
    }
  }
  return digester.finish();
}

/// This rank's file on the device, and the report about it.
std::string write_phase(const fs::path& path, std::span<const TensorSlice> slices, int rank,
                        std::int64_t staged_bytes) {
  const std::vector<TensorEntry> entries = write_rank_file(path, slices, rank, staged_bytes);
  sync_and_drop_cache(path);
  FileDigest digest;
  try {
    digest = read_back(path, slices, entries, staged_bytes);
  } catch (const Error& error) {
    fail(ExitCode::io, error.what());  // whatever it is, it was not written as asked
  }
  json report{{"bytes", digest.bytes}, {"xxh3_128", digest.xxh3_128}};
  tensors_to_json(entries, report["tensors"]);
  return report.dump();
}

Manifest merge(const CheckpointMetadata& metadata, const std::vector<std::string>& reports) {
  Manifest manifest{metadata, {}, {}};
  std::map<std::string, TensorEntry> tensors;
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    const json report = json::parse(reports[rank]);
    manifest.files.push_back(
        {rank_file_name(static_cast<int>(rank), static_cast<int>(reports.size())),
         {report.at("bytes").get<std::int64_t>(), report.at("xxh3_128").get<std::string>()}});
    for (TensorEntry& entry : tensors_from_json(report.at("tensors"))) {
      const auto [at, fresh] = tensors.try_emplace(entry.name, entry);
      if (fresh) continue;
      LONGHAUL_CHECK(at->second.dtype == entry.dtype && at->second.sizes == entry.sizes, "tensor '",
                     entry.name, "' has another dtype or other sizes on rank ", rank);
      std::ranges::move(entry.slices, std::back_inserter(at->second.slices));
    }
  }
  for (auto& [name, tensor] : tensors) manifest.tensors.push_back(std::move(tensor));
  check(manifest, ExitCode::internal, "checkpoint");
  return manifest;
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code code;
  fs::rename(from, to, code);
  if (code) {
    fail(ExitCode::io, from.string(), ": cannot rename to ", to.string(), ": ", code.message());
  }
}

/// Swaps two folders in one step; false where the filesystem cannot.
bool exchange_folders(const fs::path& a, const fs::path& b) {
  constexpr unsigned kExchange = 2;  // RENAME_EXCHANGE
  if (::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), kExchange) == 0)
    return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  fail(ExitCode::io, a.string(), ": cannot be exchanged with ", b.string(), ": ",
       std::generic_category().message(errno));
}

/// Takes the folder out of sight in one step, then removes it at leisure.
void remove_checkpoint(const fs::path& path, std::int64_t step) {
  const fs::path hidden =
      path.parent_path() / concat(step_name(step), ".tmp-removed-", unique_suffix());
  rename_folder(path, hidden);
  fs::remove_all(hidden);
}

/// The attempt becomes step-N; returns where an older step-N is now, or "". Where folders cannot be
/// exchanged the older one waits as step-N.replaced-*, which readers take when step-N is missing.
fs::path publish(const fs::path& attempt_path, const fs::path& folder, std::int64_t step) {
  const fs::path target = folder / step_name(step);
  fs::path older;
  if (!fs::exists(fs::symlink_status(target))) {
    rename_folder(attempt_path, target);
  } else if (exchange_folders(attempt_path, target)) {
    older = attempt_path;
  } else {
    older = folder / concat(step_name(step), ".replaced-", unique_suffix());
    rename_folder(target, older);
    sync_folder(folder);
    rename_folder(attempt_path, target);
  }
  sync_folder(folder);
  return older;
}

/// Undoes publish() for a checkpoint that does not read back.
void withdraw(const fs::path& target, const fs::path& older, std::int64_t step) {
  remove_checkpoint(target, step);
  if (!older.empty()) rename_folder(older, target);
  sync_folder(target.parent_path());
}

/// Attempts that died, and older versions of steps whose new version is in place.
void remove_leftovers(const fs::path& folder) {
  for (const Entry& entry : list_entries(folder)) {
    const bool stale =
        entry.kind == EntryKind::attempt ||
        (entry.kind == EntryKind::replaced && fs::exists(folder / step_name(entry.step)));
    if (stale) fs::remove_all(entry.path);
  }
}

void prune(const fs::path& folder, std::int64_t step, std::int64_t keep_latest_k) {
  if (keep_latest_k <= 0) return;
  std::vector<std::int64_t> steps = list_checkpoints(folder);
  std::erase_if(steps, [&](std::int64_t other) { return other > step; });
  const std::int64_t surplus = std::ssize(steps) - keep_latest_k;
  for (std::int64_t index = 0; index < surplus; ++index) {
    const std::int64_t old = steps[static_cast<std::size_t>(index)];
    remove_checkpoint(*find_step(folder, old), old);
  }
}

/// What a failed save leaves: the newest complete checkpoint, of whatever step.
std::string safe_text(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  try {
    steps = list_checkpoints(folder);
  } catch (const Error& error) {
    return concat("which one is safe cannot be told: ", error.what());
  }
  if (steps.empty()) return "no checkpoint is complete there";
  return concat("the checkpoint of step ", steps.back(),
                " is complete and safe, and the run goes on from there when it is started again");
}

[[noreturn]] void explain_failed_save(const fs::path& folder, std::int64_t step,
                                      const Error& error) {
  const std::string safe = safe_text(folder);
  if (!says_no_space(error.what()))
    fail(error.code(), error.what(), "; saving step ", step, " has failed: ", safe);
  const std::optional<std::int64_t> free = free_bytes(folder);
  fail(error.code(), "no space left on ", folder.string(),
       free ? concat(" (", size_text(*free), " free)") : "", " for the checkpoint of step ", step,
       ": ", safe, "; free space there first (", error.what(), ")");
}

void save(const SaveOptions& options, const CheckpointMetadata& metadata,
          std::span<const TensorSlice> slices, Communicator& comm, const Stream& stream) {
  LONGHAUL_CHECK(metadata.step >= 0, "checkpoint of step ", metadata.step);
  const Deadline deadline = deadline_in(options.timeout_seconds);
  const bool lead = comm.rank() == 0;
  const auto phase = [&](const auto& work) {
    return agree(checkpoint::attempt(work), comm, stream, deadline);
  };
  const fs::path target = options.folder / step_name(metadata.step);

  // 1. A fresh folder of a name that no reader looks at.
  fs::path attempt_path;
  Cleanup remove_attempt([&] {
    std::error_code ignored;  // an attempt that cannot be removed is ignored by readers
    if (lead && !attempt_path.empty()) fs::remove_all(attempt_path, ignored);
  });
  const std::string name = phase([&]() -> std::string {
    if (!lead) return "";
    options.before_change();
    fs::create_directories(options.folder);
    remove_leftovers(options.folder);
    const std::string fresh = concat(step_name(metadata.step), ".tmp-", unique_suffix());
    if (!fs::create_directory(options.folder / fresh)) {
      fail(ExitCode::io, (options.folder / fresh).string(), ": exists already");
    }
    attempt_path = options.folder / fresh;
    return fresh;
  })[0];
  attempt_path = options.folder / name;

  // 2. Every rank's file, on the device and read back.
  const std::string file = rank_file_name(comm.rank(), comm.size());
  const std::vector<std::string> reports = phase(
      [&] { return write_phase(attempt_path / file, slices, comm.rank(), options.staged_bytes); });

  // 3. The manifest, and the rename that commits.
  fs::path older;
  phase([&]() -> std::string {
    if (!lead) return "";
    write_new_file(attempt_path / kManifestName, to_text(merge(metadata, reports)));
    sync_folder(attempt_path);
    options.before_change();
    older = publish(attempt_path, options.folder, metadata.step);
    return "";
  });
  remove_attempt.dismiss();

  // 4. What a reader will find under the final name: the bytes have been read back before it.
  try {
    phase([&]() -> std::string {
      const Manifest manifest = read_manifest(target);
      check_file_size(target, manifest.files.at(static_cast<std::size_t>(comm.rank())));
      return "";
    });
  } catch (const Error& error) {
    if (error.code() != ExitCode::data && error.code() != ExitCode::io) throw;
    phase([&]() -> std::string {
      if (!lead) return "";
      options.before_change();
      withdraw(target, older, metadata.step);
      return "";
    });
    fail(ExitCode::io, "the new checkpoint does not read back: ", error.what());
  }
  phase([&]() -> std::string {
    if (!lead) return "";
    options.before_change();
    remove_leftovers(options.folder);
    prune(options.folder, metadata.step, options.keep_latest_k);
    return "";
  });
}

}  // namespace
}  // namespace checkpoint

void save_checkpoint(const SaveOptions& options, const CheckpointMetadata& metadata,
                     std::span<const TensorSlice> slices, Communicator& comm,
                     const Stream& stream) {
  try {
    checkpoint::save(options, metadata, slices, comm, stream);
  } catch (const Error& error) {
    if (error.code() != ExitCode::io) throw;
    const checkpoint::Report owner = checkpoint::attempt([&]() -> std::string {
      if (comm.rank() == 0) options.before_change();
      return "";
    });
    checkpoint::agree(owner, comm, stream, deadline_in(options.timeout_seconds));
    checkpoint::explain_failed_save(options.folder, metadata.step, error);
  }
}

}  // namespace longhaul::runtime

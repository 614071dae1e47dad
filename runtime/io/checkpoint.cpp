#include "runtime/io/checkpoint.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "runtime/error.h"
#include "runtime/io/checkpoint_manifest_impl.h"
#include "runtime/tensor_impl.h"

namespace longhaul::runtime {

namespace fs = std::filesystem;
using namespace checkpoint;

namespace {

constexpr double kOpenTimeoutSeconds = 3600;

/// What to do about a damaged checkpoint.
std::string advice(const fs::path& folder, std::int64_t step) {
  std::vector<std::int64_t> older = list_checkpoints(folder);
  std::erase_if(older, [&](std::int64_t other) { return other >= step; });
  if (older.empty()) {
    return "; there is no older checkpoint: set checkpoint.resume = \"never\" to start afresh";
  }
  return concat("; set checkpoint.resume = ", older.back(),
                " to go on from the newest older checkpoint");
}

fs::path require_step(const fs::path& folder, std::int64_t step) {
  if (const auto path = find_step(folder, step)) return *path;
  std::string known;
  for (const std::int64_t other : list_checkpoints(folder)) known += concat(" ", other);
  fail(ExitCode::config, folder.string(), ": no checkpoint of step ", step,
       "; steps there:", known.empty() ? " none" : known);
}

/// Verifies the manifest and the files first, first + stride, ...
Manifest verify(const fs::path& folder, std::int64_t step, const fs::path& path, int first,
                int stride) {
  try {
    Manifest manifest = read_manifest(path);
    if (manifest.metadata.step != step) {
      fail(ExitCode::data, (path / kManifestName).string(), ": is of step ", manifest.metadata.step,
           ", in the folder of step ", step);
    }
    for (auto index = static_cast<std::size_t>(first); index < manifest.files.size();
         index += static_cast<std::size_t>(stride)) {
      verify_file(path, manifest.files[index]);
    }
    return manifest;
  } catch (const Error& error) {
    if (error.code() != ExitCode::data) throw;
    fail(ExitCode::data, error.what(), advice(folder, step));
  }
}

}  // namespace

std::vector<std::int64_t> list_checkpoints(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  for (const Entry& entry : list_entries(folder)) {
    if (entry.kind != EntryKind::attempt) steps.push_back(entry.step);
  }
  std::ranges::sort(steps);
  const auto doubles = std::ranges::unique(steps);
  steps.erase(doubles.begin(), doubles.end());
  return steps;
}

fs::path set_aside_newer_checkpoints(const fs::path& folder, std::int64_t step) {
  fs::path aside;
  Cleanup remove_empty([&] {
    std::error_code ignored;  // it stays where something is in it by now
    if (!aside.empty()) fs::remove(aside, ignored);
  });
  try {
    for (const Entry& entry : list_entries(folder)) {
      if (entry.kind == EntryKind::attempt || entry.step <= step) continue;
      for (int number = 1; aside.empty(); ++number) {
        const fs::path free = folder / concat("aside-", number);
        if (fs::exists(fs::symlink_status(free)) || !fs::create_directory(free)) continue;
        aside = free;
      }
      fs::rename(entry.path, aside / entry.path.filename());
    }
    if (!aside.empty()) {
      sync_folder(aside);
      sync_folder(folder);
    }
    remove_empty.dismiss();
  } catch (const fs::filesystem_error& error) {
    fail(ExitCode::io, folder.string(), ": cannot set its later checkpoints aside: ", error.what());
  }
  return aside;
}

struct Checkpoint::State {
  fs::path path;
  Manifest manifest;
  std::vector<TensorInfo> tensors;
  mutable std::mutex mutex;
  mutable std::map<std::int64_t, hdf5::File> open_files;

  State(fs::path folder, Manifest read) : path(std::move(folder)), manifest(std::move(read)) {
    for (const TensorEntry& tensor : manifest.tensors) {
      tensors.push_back({tensor.name, tensor.dtype, tensor.sizes, std::ssize(tensor.slices)});
    }
  }

  const TensorEntry* find(const std::string& name) const {
    const auto at = std::ranges::lower_bound(manifest.tensors, name, {}, &TensorEntry::name);
    return at != manifest.tensors.end() && at->name == name ? &*at : nullptr;
  }

  hdf5::File file(std::int64_t index) const {
    std::lock_guard lock(mutex);
    const auto found = open_files.find(index);
    if (found != open_files.end()) return found->second;
    const fs::path file_path = path / manifest.files[static_cast<std::size_t>(index)].name;
    return open_files.emplace(index, hdf5::File::open(file_path)).first->second;
  }

  const TensorEntry& require(const std::string& name) const {
    const TensorEntry* tensor = find(name);
    if (tensor == nullptr) {
      fail(ExitCode::data, path.string(), ": no tensor '", name, "'; it has ",
           manifest.tensors.size(), " others");
    }
    return *tensor;
  }
};

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const fs::path& folder, std::int64_t step) {
  const fs::path path = require_step(folder, step);
  return Checkpoint(std::make_unique<State>(path, verify(folder, step, path, 0, 1)));
}

Checkpoint Checkpoint::open(const fs::path& folder, std::int64_t step, Communicator& comm,
                            const Stream& stream) {
  std::unique_ptr<State> state;
  const Report report = attempt([&]() -> std::string {
    const fs::path path = require_step(folder, step);
    state = std::make_unique<State>(path, verify(folder, step, path, comm.rank(), comm.size()));
    return "";
  });
  agree(report, comm, stream, deadline_in(kOpenTimeoutSeconds));
  return Checkpoint(std::move(state));
}

std::optional<Checkpoint> Checkpoint::open_newest(const fs::path& folder, Communicator& comm,
                                                  const Stream& stream) {
  // Rank 0 chooses: other nodes may see a shared filesystem a moment later.
  const Report report = attempt([&]() -> std::string {
    if (comm.rank() != 0) return "";
    const std::vector<std::int64_t> steps = list_checkpoints(folder);
    return steps.empty() ? "" : std::to_string(steps.back());
  });
  const std::string newest = agree(report, comm, stream, deadline_in(kOpenTimeoutSeconds))[0];
  if (newest.empty()) return std::nullopt;
  return open(folder, std::stoll(newest), comm, stream);
}

const fs::path& Checkpoint::path() const { return state_->path; }
const CheckpointMetadata& Checkpoint::metadata() const { return state_->manifest.metadata; }
std::span<const TensorInfo> Checkpoint::tensors() const { return state_->tensors; }
bool Checkpoint::has(const std::string& name) const { return state_->find(name) != nullptr; }

const TensorInfo& Checkpoint::tensor(const std::string& name) const {
  const TensorEntry& entry = state_->require(name);
  return state_->tensors[static_cast<std::size_t>(&entry - state_->manifest.tensors.data())];
}

std::vector<std::pair<std::string, std::int64_t>> Checkpoint::files() const {
  std::vector<std::pair<std::string, std::int64_t>> files;
  for (const FileEntry& file : state_->manifest.files) {
    files.emplace_back(file.name, file.digest.bytes);
  }
  return files;
}

void Checkpoint::read(const std::string& name, std::span<const std::int64_t> start,
                      TensorView out) const {
  const TensorEntry& tensor = state_->require(name);
  const std::size_t dims = tensor.sizes.size();
  if (out.dtype() != tensor.dtype) {
    fail(ExitCode::data, state_->path.string(), ": tensor '", name, "' is ",
         runtime::name(tensor.dtype), "; expected ", runtime::name(out.dtype()));
  }
  LONGHAUL_CHECK(out.device().kind == DeviceKind::cpu, "tensor '", name, "' is read to the host");
  if (static_cast<std::size_t>(out.dims()) != dims || start.size() != dims) {
    fail(ExitCode::data, state_->path.string(), ": tensor '", name, "' has ", dims,
         " dims; expected ", out.dims());
  }
  for (int dim = 0; dim < out.dims(); ++dim) {
    const std::int64_t at = start[static_cast<std::size_t>(dim)];
    const std::int64_t size = tensor.sizes[static_cast<std::size_t>(dim)];
    if (at < 0 || out.size(dim) > size || at > size - out.size(dim)) {
      fail(ExitCode::data, state_->path.string(), ": tensor '", name, "' has size ", size,
           " in dim ", dim, "; expected at least ", at + out.size(dim));
    }
  }
  std::vector<std::byte> buffer;
  for (const SliceEntry& slice : tensor.slices) {
    std::vector<std::int64_t> within(dims), count(dims);  // the common block, inside the slice
    TensorView part = out;
    bool common = true;
    for (std::size_t dim = 0; dim < dims && common; ++dim) {
      const std::int64_t end_out = start[dim] + out.size(static_cast<int>(dim));
      const std::int64_t begin = std::max(start[dim], slice.start[dim]);
      const std::int64_t end = std::min(end_out, slice.start[dim] + slice.count[dim]);
      common = begin < end;
      if (!common) break;
      within[dim] = begin - slice.start[dim];
      count[dim] = end - begin;
      part = part.slice(static_cast<int>(dim), begin - start[dim], end - start[dim]);
    }
    if (!common) continue;
    const hdf5::Dataset dataset = state_->file(slice.file).dataset(slice.dataset);
    if (dataset.info().sizes != slice.count) {
      fail(ExitCode::data, state_->path.string(), ": dataset '", slice.dataset,
           "' has other sizes than the manifest says");
    }
    buffer.resize(static_cast<std::size_t>(part.bytes()));
    dataset.read_bytes(within, count, element_of(tensor.dtype), buffer);
    detail::copy_now(ConstTensorView(buffer.data(), tensor.dtype, out.device(), count), part);
  }
}

void Checkpoint::read(const std::string& name, std::span<const std::int64_t> start, TensorView out,
                      const Stream& stream, std::int64_t staged_bytes) const {
  LONGHAUL_CHECK(out.contiguous() && out.device() == stream.device(), "tensor '", name,
                 "' is read to ", to_string(out.device()), " by a stream of ",
                 to_string(stream.device()), "; expected contiguous memory of that device");
  if (out.elements() == 0) return;
  LONGHAUL_CHECK(out.dims() >= 1, "tensor '", name, "' is read to a scalar");
  const std::int64_t rows = out.size(0), row_bytes = out.bytes() / rows;
  const std::int64_t step = std::min(rows, rows_within(staged_bytes, row_bytes));
  const Buffer staging = stream.allocate_host(step * row_bytes);
  std::vector<std::int64_t> at(start.begin(), start.end());
  for (std::int64_t row = 0; row < rows; row += step) {
    const TensorView part = out.slice(0, row, std::min(rows, row + step));
    const TensorView staged(staging.data(), part.dtype(), Device{}, part.sizes());
    read(name, at, staged);
    runtime::copy(staged, part, stream);
    stream.synchronize(deadline_in(kOpenTimeoutSeconds));  // before the memory is written again
    at[0] += step;
  }
}

}  // namespace longhaul::runtime

#include "runtime/io/hdf5.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/io/file.h"
#include "runtime/io/hdf5_impl.h"

namespace longhaul::runtime::hdf5 {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

herr_t keep_first_reason(unsigned, const H5E_error2_t* error, void* out) {
  std::string& reason = *static_cast<std::string*>(out);
  if (reason.empty() && error->desc != nullptr) reason = error->desc;
  return 0;
}

std::uint64_t little_endian(const std::byte* bytes, int count) {
  std::uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i)
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

/// The end of file that an HDF5 superblock at byte 0 promises, or 0 for one that is not understood
/// here.
std::uint64_t promised_bytes(std::span<const std::byte> head) {
  constexpr std::array<unsigned char, 8> kSignature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  if (head.size() < 64 || std::memcmp(head.data(), kSignature.data(), 8) != 0) return 0;
  const int version = std::to_integer<int>(head[8]);
  const int offset_bytes = std::to_integer<int>(head[version < 2 ? 13 : 9]);
  if (version > 3 || offset_bytes != 8) return 0;
  const int end_at = version == 0 ? 40 : version == 1 ? 44 : 28;
  return little_endian(head.data() + end_at, 8);
}

void check_head(const std::filesystem::path& path, const FileHandle& file) {
  std::array<std::byte, 64> head{};
  const std::size_t got = file.read_some(head);
  const std::uint64_t promised = promised_bytes(std::span(head).first(got));
  const auto bytes = static_cast<std::uint64_t>(file.size());
  if (promised > bytes) {
    fail(ExitCode::data, path.string(), ": truncated: the header promises ", promised,
         " bytes, the file ends at byte ", bytes);
  }
}

Id file_access(const ObjectState& state, bool writing) {
  Id list = state.own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, ExitCode::internal, "no property list");
  state.require(H5Pset_fclose_degree(list.get(), H5F_CLOSE_STRONG), ExitCode::internal,
                "close degree");
  state.require(H5Pset_file_locking(list.get(), false, true), ExitCode::internal, "file locking");
  if (writing) {
    // The 1.8 format: its metadata carries checksums, and every reader since 2008 knows it.
    state.require(H5Pset_libver_bounds(list.get(), H5F_LIBVER_V18, H5F_LIBVER_V18),
                  ExitCode::internal, "format version");
    state.require(H5Pset_alignment(list.get(), 1, 64), ExitCode::internal, "alignment");
  }
  return list;
}

/// Chunk sizes of about kChunkBytes: leading dims are cut first, so that a chunk is a run of rows.
/// Cuts are even, because the last chunk of a dim is stored whole.
std::vector<hsize_t> chunk_sizes(std::span<const std::int64_t> sizes, std::int64_t element_bytes) {
  std::vector<hsize_t> chunk(sizes.size());
  std::int64_t bytes = element_bytes;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
    chunk[dim] = static_cast<hsize_t>(std::max<std::int64_t>(1, sizes[dim]));
    bytes *= static_cast<std::int64_t>(chunk[dim]);
  }
  for (std::size_t dim = 0; dim < sizes.size() && bytes > kChunkBytes; ++dim) {
    const auto size = static_cast<std::int64_t>(chunk[dim]);
    const std::int64_t rest = bytes / size;
    const std::int64_t fits = std::max<std::int64_t>(1, kChunkBytes / rest);
    const std::int64_t pieces = (size + fits - 1) / fits;
    chunk[dim] = static_cast<hsize_t>((size + pieces - 1) / pieces);
    bytes = rest * static_cast<std::int64_t>(chunk[dim]);
  }
  return chunk;
}

/// A one-component name: no path into other groups or files.
void check_name(const ObjectState& state, const std::string& dataset) {
  if (dataset.empty() || dataset == "." || dataset.find('/') != std::string::npos ||
      dataset.find('\0') != std::string::npos) {
    state.fail_with(ExitCode::data, "'", dataset, "' is not the name of a dataset at the root");
  }
}

std::string text_of(std::span<const std::int64_t> sizes) {
  std::string text = "[";
  for (const std::int64_t size : sizes) text += (text.size() > 1 ? "," : "") + std::to_string(size);
  return text + "]";
}

}  // namespace

// ---- Session and errors -------------------------------------------------------------------------

Session::Session() : lock_(library_mutex()) {
  // A damaged file can leave the library unable to shut down, and it says so on stderr at exit. We
  // close every file ourselves, so that nothing is left for exit; the call fails, harmlessly, in a
  // program that has used HDF5 before us.
  static const herr_t quiet_exit = H5dont_atexit();
  static_cast<void>(quiet_exit);
  static const bool plugins_off = H5PLset_loading_state(0) >= 0;
  LONGHAUL_CHECK(plugins_off, "HDF5 keeps its plugins on");
  LONGHAUL_CHECK(H5Eget_auto2(H5E_DEFAULT, &handler_, &handler_data_) >= 0 &&
                     H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0,
                 "HDF5's error printing cannot be silenced");
}
Session::~Session() { static_cast<void>(H5Eset_auto2(H5E_DEFAULT, handler_, handler_data_)); }

std::string take_reason() {
  std::string reason;
  if (H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first_reason, &reason) < 0) reason = "unknown";
  static_cast<void>(H5Eclear2(H5E_DEFAULT));
  return reason;
}

ObjectState::~ObjectState() {
  Session session;
  static_cast<void>(id.close());
}

std::string ObjectState::where() const {
  return what.empty() ? path.string() : path.string() + ": " + what;
}

const char* name(Element element) {
  switch (element) {
    case Element::float32:
      return "float32";
    case Element::float64:
      return "float64";
    case Element::int32:
      return "int32";
    case Element::int64:
      return "int64";
    case Element::uint8:
      return "uint8";
    case Element::uint16:
      return "uint16";
    case Element::uint32:
      return "uint32";
    case Element::uint64:
      return "uint64";
  }
  return "unknown";
}

std::int64_t size_bytes(Element element) {
  switch (element) {
    case Element::float64:
    case Element::int64:
    case Element::uint64:
      return 8;
    case Element::float32:
    case Element::int32:
    case Element::uint32:
      return 4;
    case Element::uint16:
      return 2;
    case Element::uint8:
      return 1;
  }
  return 0;
}

// ---- Datasets ----------------------------------------------------------------------------------

const DatasetInfo& Dataset::info() const { return state_->info; }

void Dataset::require_element(Element element) const {
  if (element != info().element) {
    fail(ExitCode::data, state_->where(), ": holds ", hdf5::name(info().element), "; expected ",
         hdf5::name(element));
  }
}

namespace {

/// Memory and file dataspaces of a block; checks that it lies inside the dataset and that `bytes`
/// fit it.
struct Block {
  Id memory, file;
  bool empty = false;
};
Block select(const ObjectState& state, std::span<const std::int64_t> start,
             std::span<const std::int64_t> count, Element element, std::size_t bytes) {
  const Extents& sizes = state.info.sizes;
  LONGHAUL_CHECK(start.size() == sizes.size() && count.size() == sizes.size(), state.where(), ": ",
                 sizes.size(), " dims, asked for ", start.size());
  std::int64_t elements = 1;
  std::vector<hsize_t> from, length;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
    LONGHAUL_CHECK(start[dim] >= 0 && count[dim] >= 0 && start[dim] <= sizes[dim] - count[dim],
                   state.where(), ": block at ", text_of(start), " of ", text_of(count),
                   " lies outside ", text_of(sizes));
    elements *= count[dim];
    from.push_back(static_cast<hsize_t>(start[dim]));
    length.push_back(static_cast<hsize_t>(count[dim]));
  }
  LONGHAUL_CHECK(bytes == static_cast<std::size_t>(elements * size_bytes(element)), state.where(),
                 ": ", bytes, " bytes of memory for ", elements, " elements");
  Block block;
  block.empty = elements == 0;
  if (block.empty) return block;
  block.file = state.own(H5Dget_space(state.id.get()), H5Sclose, ExitCode::data, "no dataspace");
  if (sizes.empty()) {
    block.memory = state.own(H5Screate(H5S_SCALAR), H5Sclose, ExitCode::internal, "no dataspace");
    return block;
  }
  state.require(H5Sselect_hyperslab(block.file.get(), H5S_SELECT_SET, from.data(), nullptr,
                                    length.data(), nullptr),
                ExitCode::data, "cannot select a block");
  block.memory =
      state.own(H5Screate_simple(static_cast<int>(length.size()), length.data(), nullptr), H5Sclose,
                ExitCode::internal, "no dataspace");
  return block;
}

}  // namespace

void Dataset::read_bytes(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
                         Element element, std::span<std::byte> out) const {
  Session session;
  require_element(element);
  const Block block = select(*state_, start, count, element, out.size());
  if (block.empty) return;
  state_->require(H5Dread(state_->id.get(), disk_type(element), block.memory.get(),
                          block.file.get(), H5P_DEFAULT, out.data()),
                  ExitCode::data, "cannot read ", text_of(count), " elements at ", text_of(start));
}

void Dataset::write_bytes(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
                          Element element, std::span<const std::byte> values) {
  Session session;
  LONGHAUL_CHECK(element == info().element, state_->where(), ": holds ", hdf5::name(info().element),
                 ", written as ", hdf5::name(element));
  const Block block = select(*state_, start, count, element, values.size());
  if (block.empty) return;
  state_->require(H5Dwrite(state_->id.get(), disk_type(element), block.memory.get(),
                           block.file.get(), H5P_DEFAULT, values.data()),
                  ExitCode::io, "cannot write ", text_of(count), " elements at ", text_of(start));
}

// ---- Files -------------------------------------------------------------------------------------

File File::open(const std::filesystem::path& path) {
  Session session;
  auto state = std::make_shared<ObjectState>();
  state->path = path;
  const FileHandle file = FileHandle::read(path);
  state->file_bytes = file.size();
  check_head(path, file);
  const Id access = file_access(*state, false);
  state->id = state->own(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose,
                         ExitCode::data, "not a readable HDF5 file");
  return File(std::move(state));
}

File File::create(const std::filesystem::path& path) {
  Session session;
  auto state = std::make_shared<ObjectState>();
  state->path = path;
  const Id access = file_access(*state, true);
  const Id creation =
      state->own(H5Pcreate(H5P_FILE_CREATE), H5Pclose, ExitCode::internal, "no property list");
  state->require(H5Pset_obj_track_times(creation.get(), false), ExitCode::internal, "track times");
  state->id = state->own(H5Fcreate(path.c_str(), H5F_ACC_EXCL, creation.get(), access.get()),
                         H5Fclose, ExitCode::io, "cannot create the file");
  return File(std::move(state));
}

const std::filesystem::path& File::path() const { return state_->path; }

std::vector<std::string> File::names() const {
  Session session;
  std::vector<std::string> names;
  const auto append = [](hid_t, const char* link, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(link);
    return 0;
  };
  state_->require(
      H5Literate(state_->id.get(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, append, &names),
      ExitCode::data, "cannot list its datasets");
  std::ranges::sort(names);
  return names;
}

bool File::has(const std::string& dataset) const {
  Session session;
  check_name(*state_, dataset);
  return state_->require(H5Lexists(state_->id.get(), dataset.c_str(), H5P_DEFAULT), ExitCode::data,
                         "cannot look up '", dataset, "'") > 0;
}

Dataset File::dataset(const std::string& dataset) const {
  Session session;
  if (!has(dataset)) {
    std::string known;
    for (const std::string& other : names()) known += (known.empty() ? "" : ", ") + other;
    fail(ExitCode::data, state_->where(), ": no dataset '", dataset,
         "'; the file has: ", known.empty() ? "none" : known);
  }
  auto state = std::make_shared<ObjectState>();
  state->path = state_->path;
  state->what = "dataset '" + dataset + "'";
  state->file = state_;
  state->file_bytes = state_->file_bytes;
  H5L_info_t link;
  state->require(H5Lget_info(state_->id.get(), dataset.c_str(), &link, H5P_DEFAULT), ExitCode::data,
                 "cannot read its link");
  if (link.type != H5L_TYPE_HARD) {
    state->fail_with(ExitCode::data, "is a soft or external link; expected a dataset of this file");
  }
  state->id = state->own(H5Oopen(state_->id.get(), dataset.c_str(), H5P_DEFAULT), H5Oclose,
                         ExitCode::data, "cannot open");
  if (H5Iget_type(state->id.get()) != H5I_DATASET) {
    state->fail_with(ExitCode::data, "is not a dataset");
  }
  state->info.name = dataset;
  inspect_dataset(*state);
  return Dataset(std::move(state));
}

Dataset File::dataset(const std::string& name, Element element, int rank) const {
  Dataset opened = dataset(name);
  opened.require_element(element);
  if (std::ssize(opened.info().sizes) != rank) {
    fail(ExitCode::data, opened.state_->where(), ": has ", opened.info().sizes.size(),
         " dims, of sizes ", text_of(opened.info().sizes), "; expected ", rank);
  }
  return opened;
}

Dataset File::create_dataset(const std::string& dataset, Element element,
                             std::span<const std::int64_t> sizes, Storage storage) {
  Session session;
  check_name(*state_, dataset);
  auto state = std::make_shared<ObjectState>();
  state->path = state_->path;
  state->what = "dataset '" + dataset + "'";
  state->file = state_;
  state->info = {dataset, element, Extents(sizes.begin(), sizes.end()),
                 1,       0,       storage == Storage::contiguous,
                 -1};
  std::vector<hsize_t> extents;
  for (const std::int64_t size : sizes) {
    LONGHAUL_CHECK(size >= 0, state->where(), ": size ", size);
    extents.push_back(static_cast<hsize_t>(size));
    state->info.elements *= size;
  }
  state->info.bytes = state->info.elements * size_bytes(element);
  const Id space = state->own(
      extents.empty() ? H5Screate(H5S_SCALAR)
                      : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr),
      H5Sclose, ExitCode::internal, "no dataspace");
  const Id creation =
      state->own(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, ExitCode::internal, "no property list");
  const hid_t list = creation.get();
  state->require(H5Pset_obj_track_times(list, false), ExitCode::internal, "track times");
  state->require(H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY), ExitCode::internal, "alloc time");
  state->require(H5Pset_fill_time(list, H5D_FILL_TIME_NEVER), ExitCode::internal, "fill time");
  if (storage == Storage::chunked_with_checksums) {
    LONGHAUL_CHECK(!sizes.empty(), state->where(), ": a scalar cannot be chunked");
    const std::vector<hsize_t> chunk = chunk_sizes(sizes, size_bytes(element));
    state->require(H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data()),
                   ExitCode::internal, "chunk sizes");
    state->require(H5Pset_fletcher32(list), ExitCode::internal, "fletcher32");
  }
  state->id = state->own(H5Dcreate2(state_->id.get(), dataset.c_str(), disk_type(element),
                                    space.get(), H5P_DEFAULT, list, H5P_DEFAULT),
                         H5Dclose, ExitCode::io, "cannot create");
  return Dataset(std::move(state));
}

void File::close() {
  Session session;
  if (!state_->id.valid()) return;
  const herr_t flushed = H5Fflush(state_->id.get(), H5F_SCOPE_LOCAL);
  const std::string reason = flushed < 0 ? take_reason() : "";
  const herr_t closed = state_->id.close();
  if (flushed < 0) fail(ExitCode::io, state_->where(), ": cannot flush (HDF5: ", reason, ")");
  state_->require(closed, ExitCode::io, "cannot close");
}

}  // namespace longhaul::runtime::hdf5

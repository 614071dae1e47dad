// What a dataset's header claims, checked before anything is allocated or read.
#include <limits>

#include "runtime/io/hdf5_impl.h"

namespace longhaul::runtime::hdf5 {
namespace {

constexpr int kMaxDatasetDims = 8;
constexpr std::array kElements{Element::float32, Element::float64, Element::int32,
                               Element::int64,   Element::uint8,   Element::uint16,
                               Element::uint32,  Element::uint64};

void inspect_type(ObjectState& state) {
  const Id type =
      state.own(H5Dget_type(state.id.get()), H5Tclose, ExitCode::data, "cannot read its type");
  for (const Element element : kElements) {
    if (state.require(H5Tequal(type.get(), disk_type(element)), ExitCode::data, "bad type") > 0) {
      state.info.element = element;
      return;
    }
  }
  const H5T_class_t kind = H5Tget_class(type.get());
  const char* what = kind == H5T_INTEGER  ? "an integer"
                     : kind == H5T_FLOAT  ? "a float"
                     : kind == H5T_STRING ? "a string"
                                          : "a compound or other";
  state.fail_with(ExitCode::data, "its elements are of ", what, " type of ",
                  H5Tget_size(type.get()),
                  " bytes; expected little-endian float32, float64, int32, int64, uint8, uint16, "
                  "uint32 or uint64");
}

void inspect_sizes(ObjectState& state) {
  const Id space =
      state.own(H5Dget_space(state.id.get()), H5Sclose, ExitCode::data, "cannot read its sizes");
  const H5S_class_t kind = H5Sget_simple_extent_type(space.get());
  if (kind != H5S_SIMPLE && kind != H5S_SCALAR) {
    state.fail_with(ExitCode::data, "has neither sizes nor a value");
  }
  const int dims =
      state.require(H5Sget_simple_extent_ndims(space.get()), ExitCode::data, "no dims");
  if (dims > kMaxDatasetDims) {
    state.fail_with(ExitCode::data, "has ", dims, " dims; at most ", kMaxDatasetDims, " are read");
  }
  std::array<hsize_t, kMaxDatasetDims> sizes{};
  state.require(H5Sget_simple_extent_dims(space.get(), sizes.data(), nullptr), ExitCode::data,
                "cannot read its sizes");
  DatasetInfo& info = state.info;
  info.elements = 1;
  for (int dim = 0; dim < dims; ++dim) {
    const hsize_t size = sizes[static_cast<std::size_t>(dim)];
    if (size > static_cast<hsize_t>(std::numeric_limits<std::int64_t>::max()) ||
        __builtin_mul_overflow(info.elements, static_cast<std::int64_t>(size), &info.elements)) {
      state.fail_with(ExitCode::data, "claims size ", size, " in dim ", dim,
                      ": too large to be true");
    }
    info.sizes.push_back(static_cast<std::int64_t>(size));
  }
  if (__builtin_mul_overflow(info.elements, size_bytes(info.element), &info.bytes)) {
    state.fail_with(ExitCode::data, "claims ", info.elements, " elements: too large to be true");
  }
}

void inspect_filters(const ObjectState& state, hid_t list, bool allow_checksum) {
  const int filters =
      state.require(H5Pget_nfilters(list), ExitCode::data, "cannot read its filters");
  for (int index = 0; index < filters; ++index) {
    unsigned flags = 0, config = 0;
    std::size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(list, static_cast<unsigned>(index), &flags, &values,
                                               nullptr, 0, nullptr, &config);
    state.require(filter, ExitCode::data, "cannot read its filters");
    if (filter != H5Z_FILTER_FLETCHER32 || !allow_checksum) {
      state.fail_with(ExitCode::data, "is stored through filter ", filter,
                      "; store it plain (h5repack -f NONE)");
    }
  }
}

void inspect_contiguous(ObjectState& state) {
  DatasetInfo& info = state.info;
  info.contiguous = true;
  if (info.elements == 0) return;
  const haddr_t offset = H5Dget_offset(state.id.get());
  if (offset == HADDR_UNDEF) state.fail_with(ExitCode::data, "was never written");
  const auto file_bytes = static_cast<std::uint64_t>(state.file_bytes);
  if (offset > file_bytes || static_cast<std::uint64_t>(info.bytes) > file_bytes - offset) {
    const std::uint64_t there = offset < file_bytes ? file_bytes - offset : 0;
    state.fail_with(ExitCode::data, "claims ", info.elements,
                    " elements, but the file ends within index ",
                    there / static_cast<std::uint64_t>(size_bytes(info.element)));
  }
  if (H5Dget_storage_size(state.id.get()) != static_cast<hsize_t>(info.bytes)) {
    state.fail_with(ExitCode::data, "is stored in ", H5Dget_storage_size(state.id.get()),
                    " bytes; its sizes need ", info.bytes);
  }
  info.file_offset = static_cast<std::int64_t>(offset);
}

void inspect_chunked(ObjectState& state, hid_t list) {
  DatasetInfo& info = state.info;
  info.contiguous = false;
  std::array<hsize_t, kMaxDatasetDims> chunk{};
  const int dims = state.require(H5Pget_chunk(list, kMaxDatasetDims, chunk.data()), ExitCode::data,
                                 "cannot read its chunk sizes");
  if (dims != static_cast<int>(info.sizes.size())) {
    state.fail_with(ExitCode::data, "has chunks of ", dims, " dims");
  }
  if (info.elements == 0) return;
  // HDF5 holds a whole chunk in memory, and without compression a chunk is as large on disk.
  std::uint64_t chunk_bytes = static_cast<std::uint64_t>(size_bytes(info.element));
  for (int dim = 0; dim < dims; ++dim) {
    if (__builtin_mul_overflow(chunk_bytes, chunk[static_cast<std::size_t>(dim)], &chunk_bytes) ||
        chunk_bytes > static_cast<std::uint64_t>(state.file_bytes)) {
      state.fail_with(ExitCode::data, "claims chunks larger than the file");
    }
  }
  const hsize_t stored = H5Dget_storage_size(state.id.get());
  if (stored < static_cast<hsize_t>(info.bytes) ||
      stored > static_cast<hsize_t>(state.file_bytes)) {
    state.fail_with(ExitCode::data, "claims ", info.bytes, " bytes of elements, but ", stored,
                    " are stored in a file of ", state.file_bytes);
  }
}

}  // namespace

hid_t disk_type(Element element) {
  switch (element) {
    case Element::float32:
      return H5T_IEEE_F32LE;
    case Element::float64:
      return H5T_IEEE_F64LE;
    case Element::int32:
      return H5T_STD_I32LE;
    case Element::int64:
      return H5T_STD_I64LE;
    case Element::uint8:
      return H5T_STD_U8LE;
    case Element::uint16:
      return H5T_STD_U16LE;
    case Element::uint32:
      return H5T_STD_U32LE;
    case Element::uint64:
      return H5T_STD_U64LE;
  }
  return H5I_INVALID_HID;
}

void inspect_dataset(ObjectState& state) {
  inspect_type(state);
  inspect_sizes(state);
  const Id creation = state.own(H5Dget_create_plist(state.id.get()), H5Pclose, ExitCode::data,
                                "cannot read how it is stored");
  const hid_t list = creation.get();
  if (state.require(H5Pget_external_count(list), ExitCode::data, "bad external list") != 0) {
    state.fail_with(ExitCode::data, "is stored in other files; expected its data in this one");
  }
  const H5D_layout_t layout = H5Pget_layout(list);
  if (layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED) {
    state.fail_with(ExitCode::data, "has ", layout == H5D_COMPACT ? "compact" : "virtual",
                    " storage; expected contiguous or chunked");
  }
  inspect_filters(state, list, layout == H5D_CHUNKED);
  if (layout == H5D_CONTIGUOUS) {
    inspect_contiguous(state);
  } else {
    inspect_chunked(state, list);
  }
}

}  // namespace longhaul::runtime::hdf5

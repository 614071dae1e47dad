#pragma once
// HDF5 files over the serial C API: typed n-dim datasets and attributes at the root of a file, and
// nothing else.
//
// Files are read as hostile. Opening a dataset checks link and object class, element type, rank,
// sizes, storage layout and filters, and that the file is long enough, before anything is
// allocated. Refused: external, virtual and compact storage, every filter but fletcher32, soft and
// external links, data that was never written. Plugins are off; files are not locked (locks fail on
// many parallel filesystems). HDF5's own error printing is silenced; its innermost reason ends our
// message.
//
// Throws: Error(data) for what a file holds, Error(io) when it cannot be opened or written. Every
// message names the file and the dataset or attribute. Thread-safe, under one lock for the whole
// library.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace longhaul::runtime::hdf5 {

/// Element types on disk, little-endian. bfloat16 has none in HDF5: its bits are kept as uint16.
enum class Element : std::uint8_t { float32, float64, int32, int64, uint8, uint16, uint32, uint64 };
const char* name(Element element);
std::int64_t size_bytes(Element element);

template <class T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr Element value = Element::float32;
};
template <>
struct ElementOf<double> {
  static constexpr Element value = Element::float64;
};
template <>
struct ElementOf<std::int32_t> {
  static constexpr Element value = Element::int32;
};
template <>
struct ElementOf<std::int64_t> {
  static constexpr Element value = Element::int64;
};
template <>
struct ElementOf<std::uint8_t> {
  static constexpr Element value = Element::uint8;
};
template <>
struct ElementOf<std::uint16_t> {
  static constexpr Element value = Element::uint16;
};
template <>
struct ElementOf<std::uint32_t> {
  static constexpr Element value = Element::uint32;
};
template <>
struct ElementOf<std::uint64_t> {
  static constexpr Element value = Element::uint64;
};

using Extents = std::vector<std::int64_t>;

/// What a dataset's header says; checked against the file's length.
struct DatasetInfo {
  std::string name;
  Element element = Element::float32;
  Extents sizes;                  ///< empty for a scalar
  std::int64_t elements = 0;      ///< product of sizes
  std::int64_t bytes = 0;         ///< of all elements
  bool contiguous = true;         ///< false: chunked
  std::int64_t file_offset = -1;  ///< of the first byte, for a contiguous dataset with elements
};

/// How a new dataset is stored. Chunked datasets carry fletcher32 checksums; chunks hold about 4
/// MiB.
enum class Storage : std::uint8_t { contiguous, chunked_with_checksums };

struct ObjectState;  // hdf5_impl.h

/// Attributes of a file's root or of a dataset. Integers and floats of any width are accepted when
/// the value fits; strings of fixed and of variable length, up to 1 MiB.
class Object {
 public:
  bool has_attribute(const std::string& attribute) const;
  std::int64_t int64_attribute(const std::string& attribute) const;
  double float64_attribute(const std::string& attribute) const;
  std::string string_attribute(const std::string& attribute) const;
  void set_attribute(const std::string& attribute, std::int64_t value);
  void set_attribute(const std::string& attribute, double value);
  void set_attribute(const std::string& attribute, const std::string& value);
  void set_attribute(const std::string& attribute, const char* value) {
    set_attribute(attribute, std::string(value));
  }

 protected:
  explicit Object(std::shared_ptr<ObjectState> state) : state_(std::move(state)) {}
  std::shared_ptr<ObjectState> state_;
};

class Dataset : public Object {
 public:
  const DatasetInfo& info() const;

  /// The block [start, start + count) in row-major order; `out` holds exactly its bytes.
  void read_bytes(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
                  Element element, std::span<std::byte> out) const;
  void write_bytes(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
                   Element element, std::span<const std::byte> values);

  template <class T>
  void read(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
            std::span<T> out) const {
    read_bytes(start, count, ElementOf<T>::value, std::as_writable_bytes(out));
  }
  template <class T>
  void write(std::span<const std::int64_t> start, std::span<const std::int64_t> count,
             std::span<const T> values) {
    write_bytes(start, count, ElementOf<T>::value, std::as_bytes(values));
  }
  /// All of it, into existing memory.
  template <class T>
  void read(std::span<T> out) const {
    const Extents start(info().sizes.size(), 0);
    read<T>(start, info().sizes, out);
  }
  /// All of it. Refuses another element type before it allocates.
  template <class T>
  std::vector<T> read() const {
    require_element(ElementOf<T>::value);
    std::vector<T> values(static_cast<std::size_t>(info().elements));
    read<T>(std::span(values));
    return values;
  }
  /// Throws Error(data) unless the dataset holds this element type.
  void require_element(Element element) const;

 private:
  friend class File;
  using Object::Object;
};

class File : public Object {
 public:
  /// Read-only. Throws Error(io) for a missing file, Error(data) for one that is not HDF5 or is cut
  /// short.
  static File open(const std::filesystem::path& path);
  /// A new file; it must not exist. Equal contents give equal bytes (no timestamps are kept).
  static File create(const std::filesystem::path& path);

  const std::filesystem::path& path() const;
  /// Names at the root, sorted.
  std::vector<std::string> names() const;
  bool has(const std::string& dataset) const;
  Dataset dataset(const std::string& dataset) const;
  /// Also throws Error(data) unless element type and rank are these.
  Dataset dataset(const std::string& dataset, Element element, int rank) const;

  Dataset create_dataset(const std::string& dataset, Element element,
                         std::span<const std::int64_t> sizes,
                         Storage storage = Storage::contiguous);
  /// Creates and writes in one go.
  template <class T>
  Dataset write(const std::string& dataset, const Extents& sizes, std::span<const T> values) {
    Dataset created = create_dataset(dataset, ElementOf<T>::value, sizes);
    created.write<T>(Extents(sizes.size(), 0), sizes, values);
    return created;
  }

  /// Flushes and closes, with every error reported; the destructor cannot report. Datasets of the
  /// file are closed with it.
  void close();

 private:
  using Object::Object;
};

}  // namespace longhaul::runtime::hdf5

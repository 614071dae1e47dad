#pragma once
// safetensors files, and folders of them as Hugging Face's tools read and write them. Format and
// what is refused: runtime/io/README.md. Source: github.com/huggingface/safetensors.
//
// Files are read as hostile. Opening one checks all of its header and the file's length before
// anything is used; it takes at most 64 MiB, whatever the header says. No data is read by opening.
//
// Throws: Error(data) for what a file holds, naming file, tensor, value and what was expected;
// Error(io) when it cannot be opened, read or written.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/io/file.h"

namespace longhaul::runtime::safetensors {

/// Element types, little-endian, in the order in which a file's tensors are sorted.
enum class Element : std::uint8_t {
  u64,
  i64,
  f64,
  f32,
  u32,
  i32,
  bf16,
  f16,
  u16,
  i16,
  f8_e4m3,
  f8_e5m2,
  i8,
  u8,
  boolean,
};
/// As files write it: "F32", "BF16", "F8_E4M3", "BOOL".
const char* name(Element element);
std::int64_t size_bytes(Element element);

/// What a tensor is; its bytes are row-major.
struct TensorInfo {
  std::string name;  ///< UTF-8, any characters; shown() for messages
  Element element = Element::f32;
  std::vector<std::int64_t> sizes;  ///< empty for a scalar

  /// The product of the sizes.
  std::int64_t elements() const;
  std::int64_t bytes() const { return elements() * size_bytes(element); }
};
/// A name as messages show it: quoted, escaped where it is not printable, cut where it is long.
std::string shown(std::string_view name);

/// A tensor and where its bytes lie, counted from the first byte behind the header.
struct Entry : TensorInfo {
  std::int64_t begin = 0, end = 0;
};

struct MetadataItem {
  std::string name, value;
  bool operator==(const MetadataItem&) const = default;
};
/// In the file's order. None and an empty one are different files.
using Metadata = std::optional<std::vector<MetadataItem>>;

/// One file, open for reading. Move only; reading is thread-safe.
class File {
 public:
  explicit File(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  std::int64_t bytes() const { return data_begin_ + data_bytes_; }
  const Metadata& metadata() const { return metadata_; }
  /// In the order of their bytes, which leave no hole and do not overlap.
  std::span<const Entry> entries() const { return entries_; }
  /// The entry of this name, or null.
  const Entry* find(std::string_view name) const;

  /// The entry's bytes from byte `first` on, as many as fit `out`, which lie within it. Blocks.
  void read(const Entry& entry, std::int64_t first, std::span<std::byte> out) const;
  /// The same of elements, as float32: F32, BF16 and F16 only. Holds little memory besides `out`.
  void read_floats(const Entry& entry, std::int64_t first, std::span<float> out) const;

 private:
  FileHandle file_;
  std::int64_t data_begin_ = 0, data_bytes_ = 0;
  Metadata metadata_;
  std::vector<Entry> entries_;
  std::vector<std::int64_t> by_name_;  // indices of entries_, sorted by name
};

/// A new file, written from its first byte to its last: equal tensors and metadata give the bytes
/// that Hugging Face's library gives. Tensors are sorted by element type, then name; their bytes
/// come piece by piece in that order, and none are kept.
class Writer {
 public:
  /// Creates `path`, which must not exist yet, and writes the header. Throws: Error(data) for a
  /// tensor listed twice, a name or metadata that are not UTF-8, or sizes that overflow.
  Writer(const std::filesystem::path& path, std::span<const TensorInfo> tensors,
         const Metadata& metadata);
  /// Removes a file that was not finished.
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  /// In the order in which their bytes are to come.
  std::span<const Entry> entries() const { return entries_; }
  /// The entry that the next bytes belong to; null when all have come. Never one without bytes.
  const Entry* next() const;
  /// The next bytes, all of next().
  void append(std::span<const std::byte> bytes);
  /// The next elements of next(), which is F32, BF16 or F16: rounded to nearest even. Throws
  /// Error(data) with tensor and index for a finite value that it cannot hold.
  void append_floats(std::span<const float> values);
  /// Checks that all bytes have come, and forces the file to the device.
  void finish();

 private:
  void skip_empty();
  void remove();

  std::vector<Entry> entries_;
  std::optional<FileHandle> file_;  // made when all else is known to be right
  std::size_t current_ = 0;         // index of next()
  std::int64_t written_ = 0;        // bytes of next() so far
  std::vector<std::byte> packed_;   // of rounded values
  bool finished_ = false;
};

/// out[i] = element i of `bytes` as float32, exactly. F32, BF16 and F16 only.
void to_floats(Element element, std::span<const std::byte> bytes, std::span<float> out);
/// Element i of `bytes` = values[i], rounded to nearest even; NaN stays NaN, infinity stays.
/// Returns the index of the first finite value that would become infinite, or nothing.
std::optional<std::int64_t> from_floats(Element element, std::span<const float> values,
                                        std::span<std::byte> bytes);

inline constexpr const char* kWeightsName = "model.safetensors";
inline constexpr const char* kIndexName = "model.safetensors.index.json";

/// The weights of a Hugging Face folder: model.safetensors, or the files that
/// model.safetensors.index.json names. Move only; reading is thread-safe.
class Weights {
 public:
  /// Throws: Error(data) for a folder without safetensors, with both and an index that does not
  /// name the single file, a tensor in two files, an index without metadata or weight_map, or one
  /// that names anything but a file of the folder.
  explicit Weights(const std::filesystem::path& folder);

  struct Place {
    const File* file = nullptr;
    const Entry* entry = nullptr;
  };
  /// Where the tensor of this name lies; both null when no file holds it.
  Place find(std::string_view name) const;
  /// Of all files, sorted by name.
  std::span<const Place> tensors() const { return tensors_; }
  /// Sorted by name.
  std::span<const File> files() const { return files_; }
  /// The index as it stands in the folder, for whoever writes the same files again; none without.
  const std::optional<std::string>& index_text() const { return index_text_; }

  /// Names that the index gives to a file which does not hold them (old folders do so with the head
  /// of a model whose head is tied), and tensors that it does not name or that lie in another file
  /// than it says. The caller judges.
  std::span<const std::string> absent() const { return absent_; }
  std::span<const std::string> unlisted() const { return unlisted_; }

 private:
  struct Index;
  void compare(const Index& index);

  std::vector<File> files_;
  std::vector<Place> tensors_;
  std::optional<std::string> index_text_;
  std::vector<std::string> absent_, unlisted_;
};

/// The bytes of tensors in one file when nobody says otherwise; transformers' of 5.x.
inline constexpr std::int64_t kShardBytes = 50'000'000'000;

struct Shard {
  std::string file;
  std::vector<TensorInfo> tensors;
};
/// Deals tensors, in the order given, to files of at most `most_bytes` of tensors, as transformers
/// does: a larger tensor is a file of its own at once, while the open file goes on. One file is
/// model.safetensors, more are model-00001-of-0000N.safetensors. The order is the state dict's.
std::vector<Shard> deal_to_shards(std::span<const TensorInfo> tensors,
                                  std::int64_t most_bytes = kShardBytes);
/// The text of model.safetensors.index.json for more than one shard, as transformers 5.x writes it.
std::string index_text(std::span<const Shard> shards);

}  // namespace longhaul::runtime::safetensors

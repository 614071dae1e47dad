#pragma once
// Private to runtime/io/safetensors*.cpp: headers of files, read and written.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/io/safetensors.h"

namespace longhaul::runtime::safetensors {

inline constexpr const char* kMetadataKey = "__metadata__";
/// The first bytes of a file say how long its header is.
inline constexpr std::int64_t kLengthBytes = 8;
inline constexpr std::int64_t kMostHeaderBytes = 100'000'000;  // the library's
/// What is kept of one file's header or index, in bytes as `kept` counts them.
inline constexpr std::int64_t kMostKeptBytes = std::int64_t{32} << 20;

/// At most what a string takes while it grows, and beside others.
constexpr std::int64_t kept_bytes(const std::string& text) {
  return 3 * static_cast<std::int64_t>(text.size());
}

struct Header {
  std::int64_t data_begin = 0;  ///< in the file
  std::int64_t data_bytes = 0;
  Metadata metadata;
  std::vector<Entry> entries;         // by their bytes
  std::vector<std::int64_t> by_name;  // indices of entries
};
/// Reads and checks the header of an open file.
Header read_header(const FileHandle& file);
/// The bytes before the data: the length and the JSON with its padding. Throws Error(data) naming
/// `path` for text that is not UTF-8, and for more than a reader takes.
std::string header_text(const std::filesystem::path& path, std::span<const Entry> entries,
                        const Metadata& metadata);

/// The product of sizes and element bytes; nothing when it does not fit.
std::optional<std::int64_t> checked_bytes(const TensorInfo& tensor);
/// "F32 [3,4]"
std::string shape_text(const TensorInfo& tensor);

}  // namespace longhaul::runtime::safetensors

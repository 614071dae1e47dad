#pragma once
// Whether a folder can be written to, and how much more it holds.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

namespace longhaul::runtime {

/// Writes a small file there, forces it to the device and removes it. Throws Error(io) with the
/// folder and the reason when that fails.
void prove_writable(const std::filesystem::path& folder);

/// Bytes that this user may still write to the folder's file system; nothing where it does not say.
std::optional<std::int64_t> free_bytes(const std::filesystem::path& folder);

/// Whether the words of an error, errno's or HDF5's, say that a disk or a quota is full.
bool says_no_space(std::string_view error);

}  // namespace longhaul::runtime

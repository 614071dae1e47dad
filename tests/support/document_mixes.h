#pragma once
// Document lengths: the published mixes, where they lie beside the repository, and a made-up one.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::test {

/// A file of $LONGHAUL_REFERENCE_DATA, or of ../shared/data beside the repository when that is not
/// set; nullopt where it is absent.
std::optional<std::filesystem::path> reference_data(const std::string& file);
/// Why a test that wanted the file is skipped.
std::string no_reference_data(const std::string& file);

/// A length a line.
std::vector<std::int64_t> read_lengths(const std::filesystem::path& path);
/// Log-normal lengths around 1,100 tokens with a few of up to a million; seeded.
std::vector<std::int64_t> made_up_lengths(std::size_t count, std::uint64_t seed);

/// Packs documents end to end into sequences, cut where a sequence ends; what is cut goes on as a
/// document of the next. Offsets of the first `sequences`, each from 0 to seq_len.
std::vector<std::vector<std::int64_t>> pack(const std::vector<std::int64_t>& lengths,
                                            std::int64_t seq_len, int sequences);

}  // namespace longhaul::test

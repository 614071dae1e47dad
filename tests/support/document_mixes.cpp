#include "tests/support/document_mixes.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>
#include <stdexcept>

namespace longhaul::test {

namespace fs = std::filesystem;

namespace {
fs::path reference_folder() {
  const char* given = std::getenv("LONGHAUL_REFERENCE_DATA");
  if (given != nullptr) return given;
  return (fs::path(LONGHAUL_SOURCE_DIR) / "../shared/data").lexically_normal();
}
}  // namespace

std::optional<fs::path> reference_data(const std::string& file) {
  const fs::path path = reference_folder() / file;
  if (!fs::exists(path)) return std::nullopt;
  return path;
}

std::string no_reference_data(const std::string& file) {
  return file + " is not in " + reference_folder().string() +
         "; set LONGHAUL_REFERENCE_DATA to the folder that has it";
}

std::vector<std::int64_t> read_lengths(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 0; file >> length;) lengths.push_back(length);
  if (!file.eof() || lengths.empty()) throw std::runtime_error(path.string() + " is no list");
  return lengths;
}

std::vector<std::int64_t> made_up_lengths(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> draw(7.0, 1.6);
  std::vector<std::int64_t> lengths(count);
  for (std::int64_t& length : lengths)
    length = std::clamp<std::int64_t>(std::llround(draw(random)), 1, 1 << 20);
  return lengths;
}

std::vector<std::vector<std::int64_t>> pack(const std::vector<std::int64_t>& lengths,
                                            std::int64_t seq_len, int sequences) {
  std::vector<std::vector<std::int64_t>> packed;
  std::size_t next = 0;
  std::int64_t left = 0;  // of the current document
  for (int sequence = 0; sequence < sequences; ++sequence) {
    std::vector<std::int64_t> offsets{0};
    while (offsets.back() < seq_len) {
      if (left == 0) left = lengths.at(next++);
      const std::int64_t taken = std::min(left, seq_len - offsets.back());
      offsets.push_back(offsets.back() + taken);
      left -= taken;
    }
    packed.push_back(std::move(offsets));
  }
  return packed;
}

}  // namespace longhaul::test

#include "tests/support/small_blocks.h"

#include <algorithm>

#include "runtime/io/hash.h"

namespace longhaul::test {

using namespace runtime;

void write_small_blocks(const std::filesystem::path& path, std::span<const std::int32_t> tokens,
                        std::span<const std::int64_t> lengths, std::int64_t block_tokens,
                        const std::set<std::int64_t>& damaged) {
  const std::vector<std::uint32_t> ids(tokens.begin(), tokens.end());
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  std::vector<std::uint64_t> hashes;
  const auto block = static_cast<std::size_t>(block_tokens);
  for (std::size_t at = 0; at < ids.size(); at += block) {
    const std::size_t count = std::min(block, ids.size() - at);
    hashes.push_back(xxh3_64(std::as_bytes(std::span(ids).subspan(at, count))) ^
                     (damaged.contains(std::ssize(hashes)) ? 1u : 0u));
  }
  std::filesystem::remove(path);
  hdf5::File file = hdf5::File::create(path);
  file.set_attribute("format_version", std::int64_t{1});
  file.set_attribute("vocabulary_size", kMaxVocabulary);
  file.set_attribute("tokenizer", "bytes");
  file.set_attribute("block_tokens", block_tokens);
  file.set_attribute("documents_hash", hex64(xxh3_64(std::as_bytes(std::span(offsets)))));
  file.write<std::uint32_t>("tokens", {std::ssize(ids)}, ids);
  file.write<std::int64_t>("documents", {std::ssize(offsets)}, offsets);
  file.write<std::uint64_t>("block_hashes", {std::ssize(hashes)}, hashes);
  file.close();
}

}  // namespace longhaul::test

#pragma once
// XXH3 digests (xxHash): 64 bits for blocks of data, 128 bits for whole files. They catch damage,
// not malice.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace longhaul::runtime {

std::uint64_t xxh3_64(std::span<const std::byte> bytes);
/// 16 lower-case hex digits.
std::string hex64(std::uint64_t value);
/// XXH3-128 in canonical (big-endian) form, as 32 lower-case hex digits.
std::string xxh3_128(std::string_view bytes);

/// XXH3-128 of bytes that come in pieces.
class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view bytes) { update(std::as_bytes(std::span(bytes))); }
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longhaul::runtime

#pragma once
// Keyed hashes, for proving that one knows a secret without telling it.

#include <array>
#include <cstddef>
#include <span>
#include <string>

namespace longhaul::runtime::net {

using Digest = std::array<std::byte, 32>;

/// SHA-256 (FIPS 180-4).
Digest sha256(std::span<const std::byte> message);
/// HMAC-SHA-256 (RFC 2104).
Digest hmac_sha256(std::span<const std::byte> key, std::span<const std::byte> message);
/// In a time that does not depend on where they differ.
bool equal(const Digest& a, const Digest& b);
/// Of the system's generator. Throws Error(io).
Digest random_digest();

}  // namespace longhaul::runtime::net

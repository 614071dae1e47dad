#include "runtime/text/piece_cache_impl.h"

#include <algorithm>
#include <cstring>

#include "runtime/io/hash.h"

namespace longhaul::runtime {
namespace {

constexpr std::size_t kSlots = std::size_t{1} << 16;
constexpr std::size_t kMaxTaken = kSlots / 4 * 3;

}  // namespace

PieceCache::PieceCache() : slots_(kSlots) {}

std::size_t PieceCache::place(std::string_view piece, std::uint64_t hash) const {
  for (std::size_t at = hash % kSlots;; at = (at + 1) % kSlots) {
    const Slot& slot = slots_[at];
    if (slot.bytes == 0) return at;
    if (slot.hash == hash && slot.bytes == piece.size() &&
        std::memcmp(bytes_.data() + slot.bytes_at, piece.data(), piece.size()) == 0)
      return at;
  }
}

const PieceCache::Found* PieceCache::find(std::string_view piece) {
  last_hash_ = xxh3_64(std::as_bytes(std::span(piece)));
  const Slot& slot = slots_[place(piece, last_hash_)];
  if (slot.bytes == 0) return nullptr;
  found_ = {std::span(tokens_).subspan(slot.tokens_at, slot.tokens), slot.unknown};
  return &found_;
}

void PieceCache::put(std::string_view piece, std::span<const PieceToken> tokens,
                     std::int64_t unknown) {
  if (taken_ == kMaxTaken) {
    std::ranges::fill(slots_, Slot{});
    bytes_.clear();
    tokens_.clear();
    taken_ = 0;
  }
  // At most kMaxTaken pieces of kMaxPieceBytes, two tokens or fewer a byte: all fits.
  slots_[place(piece, last_hash_)] = {last_hash_,
                                      static_cast<std::uint32_t>(bytes_.size()),
                                      static_cast<std::uint32_t>(tokens_.size()),
                                      static_cast<std::uint16_t>(piece.size()),
                                      static_cast<std::uint16_t>(tokens.size()),
                                      static_cast<std::uint16_t>(unknown)};
  bytes_.insert(bytes_.end(), piece.begin(), piece.end());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  ++taken_;
}

}  // namespace longhaul::runtime

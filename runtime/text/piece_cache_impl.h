#pragma once
// Private to runtime/text: pieces of text whose tokens are known, since words come again.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/text/bpe_impl.h"

namespace longhaul::runtime {

/// Of bounded size: when it is full, it forgets everything. Belongs to one thread at a time.
class PieceCache {
 public:
  struct Found {
    std::span<const PieceToken> tokens;
    std::int64_t unknown_characters = 0;
  };
  static constexpr std::size_t kMaxPieceBytes = 64;  ///< longer ones hardly come again

  PieceCache();
  /// What put() was given for a piece, or nothing. Valid until the next put().
  const Found* find(std::string_view piece);
  /// For a piece that the last find() was asked for in vain.
  void put(std::string_view piece, std::span<const PieceToken> tokens, std::int64_t unknown);

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t bytes_at = 0, tokens_at = 0;
    std::uint16_t bytes = 0, tokens = 0, unknown = 0;  // bytes 0: free
  };
  std::size_t place(std::string_view piece, std::uint64_t hash) const;

  std::vector<Slot> slots_;
  std::vector<char> bytes_;
  std::vector<PieceToken> tokens_;
  std::size_t taken_ = 0;
  std::uint64_t last_hash_ = 0;
  Found found_;
};

}  // namespace longhaul::runtime

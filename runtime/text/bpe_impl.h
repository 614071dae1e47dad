#pragma once
// Private to runtime/text: byte-pair encoding of one piece of text.

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace longhaul::runtime {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};
using Vocabulary = std::unordered_map<std::string, std::int32_t, TextHash, std::equal_to<>>;

/// The character that stands for a byte in a byte-level vocabulary: the bytes that print in
/// Latin-1 for themselves, the other 68 as U+0100 and up.
const std::array<std::string, 256>& byte_characters();
/// The bytes that a token of such a vocabulary stands for; nothing where one of its characters
/// stands for none.
std::optional<std::string> bytes_of(std::string_view token);

struct BpeMerge {
  std::int32_t left = 0, right = 0, product = 0;
};

struct BpeOptions {
  std::optional<std::int32_t> unknown;  ///< token for characters that nothing else stands for
  bool fuse_unknown = false;            ///< one token for a run of them
  bool byte_fallback = false;           ///< tokens <0xNN> for the bytes of such a character
  bool ignore_merges = false;           ///< a piece that is a token is that token
  bool byte_level = false;              ///< tokens are made of bytes, spelt as byte_characters()
};

struct PieceToken {
  std::int32_t id = 0;
  std::int32_t bytes = 0;  ///< of the piece
};

/// Merges of a vocabulary (Sennrich et al. 2016): over and over, of all neighbours whose pair is in
/// the list the one that stands first there, leftmost where there are several.
class Bpe {
 public:
  /// Of equal pairs the last counts.
  Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options);

  struct Room {
    struct Symbol {
      std::int32_t id = 0, bytes = 0;
      std::int32_t previous = 0, next = 0;  // -1: none
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> queue;
    std::size_t unknown_at = 0, unknown_bytes = 0;  // the first, where encode() counts any
  };
  /// Appends the tokens of a piece, valid UTF-8 and not empty, to `tokens`; returns how many of its
  /// characters became the unknown token or, without one, nothing. Throws Error(data) for a piece
  /// of 2^30 bytes or more.
  std::int64_t encode(std::string_view piece, Room& room, std::vector<PieceToken>& tokens) const;
  /// Where the part of a piece that begins at `at` ends: no merge reaches across, so that parts may
  /// be encoded one by one. Of bytes, and where whole pieces stand, all of the piece is one part.
  std::size_t part_end(std::string_view piece, std::size_t at) const;
  const Vocabulary& vocabulary() const { return vocabulary_; }
  std::optional<std::int32_t> unknown() const { return options_.unknown; }

 private:
  struct Slot {
    std::uint64_t pair = kNoPair;
    std::uint32_t rank = 0;
    std::int32_t product = 0;
  };
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

  void learn_joins(const std::vector<BpeMerge>& merges);
  bool joins(char32_t left, char32_t right) const;
  const Slot* find(std::int32_t left, std::int32_t right) const;
  std::optional<std::int32_t> whole(std::string_view piece) const;
  std::int64_t begin_symbols(std::string_view piece, Room& room) const;
  bool fall_back(std::string_view spelling, std::int32_t bytes, Room& room) const;
  void merge(Room& room) const;

  Vocabulary vocabulary_;
  Vocabulary bytes_;  // with byte_level: tokens by the bytes they stand for
  BpeOptions options_;
  std::array<std::int32_t, 256> single_;    // tokens of single bytes or ASCII characters, or -1
  std::array<std::int32_t, 256> fallback_;  // <0xNN>, or -1
  std::vector<Slot> slots_;                 // a power of two, at most half of them taken
  // For part_end(): which characters are tokens, and pairs of them side by side in some product.
  std::vector<bool> is_token_;
  std::bitset<128 * 128> ascii_joins_;
  std::unordered_set<std::uint64_t> joins_;
};

}  // namespace longhaul::runtime

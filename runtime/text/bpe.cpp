#include "runtime/text/bpe_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "runtime/error.h"
#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace longhaul::runtime {
namespace {

constexpr std::int32_t kNoToken = -1;
constexpr std::int32_t kNone = -1;
constexpr std::size_t kMaxPieceBytes =
    (std::size_t{1} << 30) - 1;                        // two symbols a byte, counted in int32
constexpr std::uint64_t kMixer = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio

bool prints(unsigned byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::int32_t find_token(const Vocabulary& vocabulary, std::string_view token) {
  const auto found = vocabulary.find(token);
  return found == vocabulary.end() ? kNoToken : found->second;
}

}  // namespace

const std::array<std::string, 256>& byte_characters() {
  static const std::array<std::string, 256> all = [] {
    std::array<std::string, 256> characters;
    char32_t other = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte)
      append_utf8(characters[byte], prints(byte) ? char32_t{byte} : other++);
    return characters;
  }();
  return all;
}

std::optional<std::string> bytes_of(std::string_view token) {
  static const std::unordered_map<std::string_view, char> by_character = [] {
    std::unordered_map<std::string_view, char> map;
    for (std::size_t byte = 0; byte < 256; ++byte)
      map.emplace(byte_characters()[byte], static_cast<char>(byte));
    return map;
  }();
  std::string bytes;
  while (!token.empty()) {
    const std::size_t size = character_bytes(token);
    const auto found = by_character.find(token.substr(0, size));
    if (size == 0 || found == by_character.end()) return std::nullopt;
    bytes.push_back(found->second);
    token.remove_prefix(size);
  }
  return bytes;
}

Bpe::Bpe(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(options) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    single_[byte] = options_.byte_level ? find_token(vocabulary_, byte_characters()[byte])
                    : byte < 0x80 ? find_token(vocabulary_, std::string(1, static_cast<char>(byte)))
                                  : kNoToken;
    fallback_[byte] = options_.byte_fallback
                          ? find_token(vocabulary_, fmt::format("<0x{:02X}>", byte))
                          : kNoToken;
  }
  if (options_.byte_level && options_.ignore_merges) {
    for (const auto& [token, id] : vocabulary_) {
      if (const auto bytes = bytes_of(token)) bytes_.emplace(*bytes, id);
    }
  }
  if (!options_.byte_level && !options_.ignore_merges) learn_joins(merges);
  slots_.resize(std::bit_ceil(2 * merges.size() + 2));
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    const std::uint64_t pair = pair_of(merge.left, merge.right);
    std::size_t at = pair * kMixer >> 32 & (slots_.size() - 1);
    while (slots_[at].pair != kNoPair && slots_[at].pair != pair)
      at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {pair, static_cast<std::uint32_t>(rank), merge.product};
  }
}

void Bpe::learn_joins(const std::vector<BpeMerge>& merges) {
  std::unordered_map<std::int32_t, std::string_view> spellings;
  is_token_.resize(kCharacters);
  for (const auto& [token, id] : vocabulary_) {
    spellings.emplace(id, token);
    if (!token.empty() && character_bytes(token) == token.size())
      is_token_[character(token)] = true;
  }
  for (const BpeMerge& merge : merges) {
    std::string_view rest = spellings.at(merge.product);
    std::optional<char32_t> left;
    while (!rest.empty()) {
      const char32_t right = character(rest);
      rest.remove_prefix(character_bytes(rest));
      if (left && *left < 128 && right < 128) ascii_joins_.set(*left * 128 + right);
      if (left) joins_.insert(std::uint64_t{*left} << 32 | right);
      left = right;
    }
  }
}

bool Bpe::joins(char32_t left, char32_t right) const {
  if (left < 128 && right < 128) return ascii_joins_[left * 128 + right];
  return joins_.contains(std::uint64_t{left} << 32 | right);
}

std::size_t Bpe::part_end(std::string_view piece, std::size_t at) const {
  if (is_token_.empty()) return piece.size();
  char32_t left = character(piece.substr(at));
  at += character_bytes(piece.substr(at));
  while (at < piece.size()) {
    const std::string_view rest = piece.substr(at);
    const char32_t right = character(rest);
    // Others become several tokens, or one with their neighbours.
    if (is_token_[left] && is_token_[right] && !joins(left, right)) break;
    left = right;
    at += character_bytes(rest);
  }
  return at;
}

const Bpe::Slot* Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = pair_of(left, right);
  for (std::size_t at = pair * kMixer >> 32 & (slots_.size() - 1);;
       at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
    if (slots_[at].pair == kNoPair) return nullptr;
  }
}

std::optional<std::int32_t> Bpe::whole(std::string_view piece) const {
  const std::int32_t id = find_token(options_.byte_level ? bytes_ : vocabulary_, piece);
  if (id == kNoToken) return std::nullopt;
  return id;
}

std::int64_t Bpe::encode(std::string_view piece, Room& room,
                         std::vector<PieceToken>& tokens) const {
  if (piece.size() > kMaxPieceBytes) {
    fail(ExitCode::data, "a piece of ", piece.size(),
         " bytes that the tokenizer's pattern does not divide; expected fewer than 2^30");
  }
  if (options_.ignore_merges) {
    if (const auto id = whole(piece)) {
      tokens.push_back({*id, static_cast<std::int32_t>(piece.size())});
      return 0;
    }
  }
  const std::int64_t unknown = begin_symbols(piece, room);
  merge(room);
  for (std::int32_t at = room.symbols.empty() ? kNone : 0; at != kNone;) {
    const Room::Symbol& symbol = room.symbols[static_cast<std::size_t>(at)];
    tokens.push_back({symbol.id, symbol.bytes});
    at = symbol.next;
  }
  return unknown;
}

/// The tokens of a piece before any merge.
std::int64_t Bpe::begin_symbols(std::string_view piece, Room& room) const {
  auto& symbols = room.symbols;
  symbols.clear();
  std::int64_t unknown = 0;
  std::int32_t waiting = 0;  // bytes of the unknown token that is next
  std::int32_t dropped = 0;  // bytes that no token stands for; the next one begins with them
  const auto put_waiting = [&] {
    if (waiting > 0) symbols.push_back({*options_.unknown, waiting});
    waiting = 0;
  };
  for (std::size_t at = 0; at < piece.size();) {
    const auto byte = static_cast<unsigned char>(piece[at]);
    std::size_t size = 1;
    std::int32_t id = single_[byte];
    std::string_view spelling =
        options_.byte_level ? std::string_view(byte_characters()[byte]) : piece.substr(at, 1);
    if (!options_.byte_level && byte >= 0x80) {
      size = character_bytes(piece.substr(at));
      spelling = piece.substr(at, size);
      id = find_token(vocabulary_, spelling);
    }
    at += size;
    const auto bytes = static_cast<std::int32_t>(size);
    if (id != kNoToken) {
      put_waiting();
      symbols.push_back({id, dropped + bytes});
      dropped = 0;
    } else if (!fall_back(spelling, bytes, room)) {  // which overtakes an unknown token that waits
      if (++unknown == 1) room.unknown_at = at - size, room.unknown_bytes = size;
      if (!options_.unknown) {
        dropped += bytes;
        continue;
      }
      if (!options_.fuse_unknown) put_waiting();
      waiting += bytes;
    }
  }
  put_waiting();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<std::int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<std::int32_t>(i) + 1 : kNone;
  }
  return unknown;
}

/// Tokens <0xNN> for a character's spelling, if all of them exist.
bool Bpe::fall_back(std::string_view spelling, std::int32_t bytes, Room& room) const {
  const auto token = [&](char byte) { return fallback_[static_cast<unsigned char>(byte)]; };
  if (std::ranges::any_of(spelling, [&](char byte) { return token(byte) == kNoToken; }))
    return false;
  for (const char byte : spelling) {
    room.symbols.push_back({token(byte), bytes > 0 ? 1 : 0});
    --bytes;
  }
  return true;
}

void Bpe::merge(Room& room) const {
  auto& symbols = room.symbols;
  auto& queue = room.queue;  // rank and place of the left symbol; least first
  queue.clear();
  const auto entry = [&](std::int32_t place) -> std::optional<std::uint64_t> {
    const Room::Symbol& left = symbols[static_cast<std::size_t>(place)];
    if (left.next == kNone) return std::nullopt;
    const Slot* slot = find(left.id, symbols[static_cast<std::size_t>(left.next)].id);
    if (slot == nullptr) return std::nullopt;
    return std::uint64_t{slot->rank} << 32 | static_cast<std::uint64_t>(place);
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    const auto place = static_cast<std::int32_t>(i);
    if (const auto next = entry(place)) queue.push_back(*next);
  }
  std::ranges::make_heap(queue, std::greater<>());
  while (!queue.empty()) {
    std::ranges::pop_heap(queue, std::greater<>());
    const std::uint64_t top = queue.back();
    queue.pop_back();
    const auto place = static_cast<std::int32_t>(top & 0xffffffffu);
    Room::Symbol& left = symbols[static_cast<std::size_t>(place)];
    if (left.id == kNoToken || left.next == kNone) continue;
    Room::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // Neighbours may have changed since.
    const Slot* slot = find(left.id, right.id);
    if (slot == nullptr || slot->rank != top >> 32) continue;
    left.id = slot->product;
    left.bytes += right.bytes;
    left.next = right.next;
    right.id = kNoToken;
    if (left.next != kNone) symbols[static_cast<std::size_t>(left.next)].previous = place;
    for (const std::int32_t changed : {left.previous, place}) {
      if (changed == kNone) continue;
      if (const auto next = entry(changed)) {
        queue.push_back(*next);
        std::ranges::push_heap(queue, std::greater<>());
      }
    }
  }
}

}  // namespace longhaul::runtime

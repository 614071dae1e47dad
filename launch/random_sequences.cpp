#include "launch/random_sequences.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

/// The finaliser of SplitMix64 (Steele et al. 2014).
std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

RandomSequences::RandomSequences(std::int64_t vocabulary, std::int64_t seq_len,
                                 std::int64_t document_tokens, const runtime::RowRules& rules)
    : vocabulary_(vocabulary),
      seq_len_(seq_len),
      document_(document_tokens > 0 ? std::min(document_tokens, seq_len) : seq_len),
      rules_(rules) {
  LONGHAUL_CHECK(vocabulary > 0 && seq_len > 0, "random sequences of ", seq_len, " tokens out of ",
                 vocabulary);
}

runtime::PackedDocuments RandomSequences::documents(std::int64_t) const {
  runtime::PackedDocuments packed;
  for (std::int64_t at = 0; at < seq_len_; at += document_) packed.offsets.push_back(at);
  packed.offsets.push_back(seq_len_);
  return packed;
}

std::int32_t RandomSequences::token(std::int64_t number, std::int64_t index) const {
  const std::uint64_t at = static_cast<std::uint64_t>(number) * 0x9e3779b97f4a7c15u;
  return static_cast<std::int32_t>(mixed(mixed(at) + static_cast<std::uint64_t>(index)) %
                                   static_cast<std::uint64_t>(vocabulary_));
}

void RandomSequences::read(std::int64_t number, std::span<const runtime::Run> runs,
                           runtime::Rows& rows) const {
  for (const runtime::Run& run : runs) {
    for (std::int64_t i = 0; i < run.count; ++i) {
      const std::int64_t index = run[i], in_document = index % document_;
      const bool last = in_document + 1 == document_ || index + 1 == seq_len_;
      rows.tokens.push_back(token(number, index));
      rows.labels.push_back(last && !rules_.labels_cross ? -1 : token(number, index + 1));
      rows.positions.push_back(
          static_cast<std::int32_t>(rules_.positions_restart ? in_document : index));
    }
  }
}

}  // namespace longhaul::launch

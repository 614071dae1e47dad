#include "runtime/io/sequences.h"

#include <Random123/philox.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

// Luby and Rackoff need four rounds; small domains want more to mix well.
constexpr std::uint32_t kFeistelRounds = 12;

std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
std::uint32_t high(std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); }

/// Appends the documents of corpus tokens [begin, end), shifted so that token `begin` sits at `at`.
void append_documents(std::span<const std::int64_t> offsets, std::int64_t begin, std::int64_t end,
                      std::int64_t at, std::vector<std::int64_t>& documents) {
  documents.push_back(at);
  for (auto next = std::ranges::upper_bound(offsets, begin); next != offsets.end() && *next < end;
       ++next) {
    const std::int64_t offset = at + *next - begin;
    if (offset > documents.back()) documents.push_back(offset);  // empty documents add nothing
  }
}

}  // namespace

KeyedPermutation::KeyedPermutation(std::int64_t size, std::uint64_t seed, std::uint64_t epoch)
    : size_(size), seed_(seed), epoch_(epoch) {
  LONGHAUL_CHECK(size >= 1, "permutation of ", size, " numbers");
  const auto bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size - 1)));
  half_bits_ = std::max(1, (bits + 1) / 2);
}

std::int64_t KeyedPermutation::operator()(std::int64_t position) const {
  LONGHAUL_CHECK(position >= 0 && position < size_, "position ", position, " of ", size_);
  const r123::Philox4x32::key_type key{{low(seed_), high(seed_)}};
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  r123::Philox4x32 philox;
  auto value = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (std::uint32_t round = 0; round < kFeistelRounds; ++round) {
      const auto bits = philox({{low(right), round, low(epoch_), high(epoch_)}}, key);
      left = std::exchange(right, left ^ (bits[0] & mask));
    }
    value = left << half_bits_ | right;
  } while (value >= static_cast<std::uint64_t>(size_));
  return static_cast<std::int64_t>(value);
}

Sequences::Sequences(const Corpus& corpus, std::int64_t seq_len, std::uint64_t seed)
    : corpus_(&corpus), seq_len_(seq_len), seed_(seed) {
  const std::int64_t tokens = corpus.info().tokens;
  if (seq_len < 1 || seq_len > std::numeric_limits<std::int32_t>::max()) {
    fail(ExitCode::config, "training.seq_len is ", seq_len, "; expected 1 to ",
         std::numeric_limits<std::int32_t>::max());
  }
  if (tokens < seq_len) {
    fail(ExitCode::config, "training.seq_len is ", seq_len, ", but ", corpus.info().path.string(),
         " holds ", tokens, " tokens; set training.seq_len to at most ", tokens,
         " or take a larger corpus");
  }
  per_epoch_ = (tokens - 1) / seq_len + 1;
}

std::int64_t Sequences::first_token(std::int64_t cursor) const {
  LONGHAUL_CHECK(cursor >= 0, "cursor ", cursor);
  const KeyedPermutation order(per_epoch_, seed_, static_cast<std::uint64_t>(cursor / per_epoch_));
  return order(cursor % per_epoch_) * seq_len_;
}

Sequence Sequences::read(std::int64_t cursor) const {
  const std::int64_t begin = first_token(cursor);
  const std::int64_t end = std::min(begin + seq_len_, corpus_->info().tokens);
  const std::int64_t wrapped = begin + seq_len_ - end;
  const auto length = static_cast<std::size_t>(seq_len_);
  Sequence sequence;
  sequence.tokens.resize(length);
  const std::span<std::int32_t> tokens(sequence.tokens);
  corpus_->read(begin, tokens.first(static_cast<std::size_t>(end - begin)));
  corpus_->read(0, tokens.last(static_cast<std::size_t>(wrapped)));
  append_documents(corpus_->documents(), begin, end, 0, sequence.documents);
  if (wrapped > 0) {
    append_documents(corpus_->documents(), 0, wrapped, end - begin, sequence.documents);
  }
  sequence.documents.push_back(seq_len_);

  sequence.labels.assign(length, -1);
  sequence.positions.resize(length);
  for (std::size_t document = 0; document + 1 < sequence.documents.size(); ++document) {
    const auto first = static_cast<std::size_t>(sequence.documents[document]);
    const auto last = static_cast<std::size_t>(sequence.documents[document + 1]);
    for (std::size_t at = first; at < last; ++at) {
      sequence.positions[at] = static_cast<std::int32_t>(at - first);
      if (at + 1 < last) sequence.labels[at] = sequence.tokens[at + 1];
    }
  }
  return sequence;
}

}  // namespace longhaul::runtime

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

/// Offsets in its sequence.
struct Document {
  std::int64_t begin, end;
};

/// Where labels come from: those of rows [row, row + count) are the corpus's tokens `first`,
/// first + stride, ..., with their weights where the corpus has them.
void read_labels(const Corpus& corpus, std::int64_t first, std::int64_t stride, std::size_t row,
                 std::size_t count, Rows& rows) {
  corpus.read(first, std::span(rows.labels).subspan(row, count), stride);
  if (corpus.info().label_weights)
    corpus.read_label_weights(first, std::span(rows.label_weights).subspan(row, count), stride);
}

/// What a row is, given its document: appends those of `piece`, which lies in the document. The
/// sequence begins at corpus token `sequence_begin` and may wrap; documents do not.
void append_rows(const Corpus& corpus, std::int64_t sequence_begin, const Run& piece,
                 const Document& document, Rows& rows) {
  const std::int64_t token = (sequence_begin + piece.first) % corpus.info().tokens;
  const std::size_t before = rows.tokens.size(),
                    after = before + static_cast<std::size_t>(piece.count);
  rows.tokens.resize(after);
  corpus.read(token, std::span(rows.tokens).subspan(before), piece.stride);

  const bool has_last = piece[piece.count - 1] + 1 == document.end;
  rows.labels.resize(after, -1);
  if (corpus.info().label_weights) rows.label_weights.resize(after, 0.0f);
  read_labels(corpus, token + 1, piece.stride, before, after - before - has_last, rows);

  for (std::int64_t i = 0; i < piece.count; ++i)
    rows.positions.push_back(static_cast<std::int32_t>(piece[i] - document.begin));
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

std::int64_t Sequences::first_token(std::int64_t number) const {
  LONGHAUL_CHECK(number >= 0, "sequence number ", number);
  const KeyedPermutation order(per_epoch_, seed_, static_cast<std::uint64_t>(number / per_epoch_));
  return order(number % per_epoch_) * seq_len_;
}

std::vector<std::int64_t> Sequences::documents(std::int64_t number) const {
  const std::int64_t begin = first_token(number);
  const std::int64_t end = std::min(begin + seq_len_, corpus_->info().tokens);
  const std::int64_t wrapped = begin + seq_len_ - end;
  std::vector<std::int64_t> offsets;
  append_documents(corpus_->documents(), begin, end, 0, offsets);
  if (wrapped > 0) append_documents(corpus_->documents(), 0, wrapped, end - begin, offsets);
  offsets.push_back(seq_len_);
  corpus_->require_unchanged();
  return offsets;
}

void Sequences::read(std::int64_t number, std::span<const Run> runs, Rows& rows) const {
  const std::vector<std::int64_t> offsets = documents(number);
  const std::int64_t begin = first_token(number);
  for (const Run& run : runs) {
    LONGHAUL_CHECK(
        run.stride >= 1 && run.first >= 0 && (run.count <= 0 || run[run.count - 1] < seq_len_),
        "rows ", run.first, ", ", run.first + run.stride, ", ... (", run.count,
        ") of a sequence of ", seq_len_, " tokens");
    // Piece by piece, each the run's part of one document.
    auto end = std::ranges::upper_bound(offsets, run.first);
    for (std::int64_t done = 0; done < run.count;) {
      const std::int64_t first = run[done];
      while (*end <= first) ++end;
      const std::int64_t inside = (*end - 1 - first) / run.stride + 1;
      const Run piece{first, std::min(run.count - done, inside), run.stride};
      append_rows(*corpus_, begin, piece, {end[-1], *end}, rows);
      done += piece.count;
    }
  }
  corpus_->require_unchanged();
}

}  // namespace longhaul::runtime

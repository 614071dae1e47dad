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

/// Rows of a sequence that follow one another: positions rise by 1, and each but the last has the
/// next one's token for its label. Lies in one document.
struct Segment {
  std::int64_t begin = 0, end = 0;  ///< index in the sequence
  std::int64_t position = 0;        ///< of the first row
  bool last_has_label = false;
};

/// A document's part in a sequence.
struct Piece {
  std::int64_t begin = 0, end = 0;  ///< index in the sequence
  std::int64_t before = 0;          ///< tokens of the document before it
  bool cut = false;                 ///< tokens of the document are behind it
};

/// Whatever the stem and the first branch hold of the piece, then every other branch.
void append_branches(const Piece& piece, const RowRules& rules, std::vector<Segment>& segments) {
  const auto [stem, length] = *rules.branches;
  const std::int64_t stem_here =
      std::clamp<std::int64_t>(stem - piece.before, 0, piece.end - piece.begin);
  const std::int64_t branched = std::max<std::int64_t>(0, piece.before - stem) % length;
  std::int64_t whole = piece.begin + std::max<std::int64_t>(0, stem - piece.before) + length -
                       branched;  // where the branch ends, cut or not
  for (std::int64_t begin = piece.begin; begin < piece.end; whole += length) {
    const std::int64_t end = std::min(whole, piece.end);
    const std::int64_t restarted = begin == piece.begin ? 0 : stem_here;
    segments.push_back(
        {begin, end, rules.positions_restart ? restarted : begin, piece.cut && end < whole});
    begin = end;
  }
}

/// What a sequence's rows are. `next` is the token behind its last one, of `tokens` in the corpus.
std::vector<Segment> segments_of(const PackedDocuments& packed, const RowRules& rules,
                                 const Corpus& corpus, std::int64_t next) {
  const bool more = next < corpus.info().tokens;
  const bool cut = more && !std::ranges::binary_search(corpus.documents(), next);
  const std::vector<std::int64_t>& offsets = packed.offsets;
  std::vector<Segment> segments;
  for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
    const bool last = d + 2 == offsets.size();
    const Piece piece{offsets[d], offsets[d + 1], d == 0 ? packed.tokens_before : 0, last && cut};
    if (rules.branches) {
      append_branches(piece, rules, segments);
    } else {
      segments.push_back({piece.begin, piece.end, rules.positions_restart ? 0 : piece.begin,
                          rules.labels_cross ? !last || more : piece.cut});
    }
  }
  return segments;
}

/// Where labels and their weights come from: those of rows [row, row + count) are the corpus's
/// tokens `first`, first + stride, ...
void read_labels(const Corpus& corpus, std::int64_t first, std::int64_t stride, std::size_t row,
                 std::size_t count, Rows& rows) {
  corpus.read(first, std::span(rows.labels).subspan(row, count), stride);
  if (corpus.info().label_weights)
    corpus.read_label_weights(first, std::span(rows.label_weights).subspan(row, count), stride);
}

/// The one place of what a row is: appends the rows of `run`, which lies in the segment. `first` is
/// the corpus token of the run's first row; a segment does not wrap, but its last label may.
void append_rows(const Corpus& corpus, std::int64_t first, const Run& run, const Segment& segment,
                 Rows& rows) {
  const std::size_t before = rows.tokens.size(),
                    after = before + static_cast<std::size_t>(run.count);
  rows.tokens.resize(after);
  corpus.read(first, std::span(rows.tokens).subspan(before), run.stride);

  const bool has_last = run[run.count - 1] + 1 == segment.end;
  rows.labels.resize(after, -1);
  if (corpus.info().label_weights) rows.label_weights.resize(after, 0.0f);
  read_labels(corpus, first + 1, run.stride, before, after - before - has_last, rows);
  if (has_last && segment.last_has_label) {
    const std::int64_t next = first + (run.count - 1) * run.stride + 1;
    read_labels(corpus, next % corpus.info().tokens, 1, after - 1, 1, rows);
  }

  for (std::int64_t i = 0; i < run.count; ++i)
    rows.positions.push_back(static_cast<std::int32_t>(segment.position + run[i] - segment.begin));
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

Sequences::Sequences(const Corpus& corpus, std::int64_t seq_len, std::uint64_t seed,
                     const RowRules& rules)
    : corpus_(&corpus), seq_len_(seq_len), seed_(seed), rules_(rules) {
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
  if (rules.branches) {
    LONGHAUL_CHECK(rules.branches->stem >= 0 && rules.branches->length >= 1 && !rules.labels_cross,
                   "branches of ", rules.branches->length, " tokens after a stem of ",
                   rules.branches->stem, ", labels that cross documents: ", rules.labels_cross);
  }
  per_epoch_ = (tokens - 1) / seq_len + 1;
}

Sequences Sequences::in_order(const Corpus& corpus) const {
  Sequences other = *this;
  other.per_epoch_ = Sequences(corpus, seq_len_, seed_).per_epoch_;  // refuses a corpus too short
  other.corpus_ = &corpus;
  other.permuted_ = false;
  return other;
}

std::int64_t Sequences::first_token(std::int64_t number) const {
  LONGHAUL_CHECK(number >= 0, "sequence number ", number);
  if (!permuted_) return number % per_epoch_ * seq_len_;
  const KeyedPermutation order(per_epoch_, seed_, static_cast<std::uint64_t>(number / per_epoch_));
  return order(number % per_epoch_) * seq_len_;
}

PackedDocuments Sequences::documents(std::int64_t number) const {
  const std::int64_t begin = first_token(number);
  const std::int64_t end = std::min(begin + seq_len_, corpus_->info().tokens);
  const std::int64_t wrapped = begin + seq_len_ - end;
  PackedDocuments packed;
  packed.tokens_before = begin - *std::prev(std::ranges::upper_bound(corpus_->documents(), begin));
  append_documents(corpus_->documents(), begin, end, 0, packed.offsets);
  if (wrapped > 0) append_documents(corpus_->documents(), 0, wrapped, end - begin, packed.offsets);
  packed.offsets.push_back(seq_len_);
  corpus_->require_unchanged();
  return packed;
}

void Sequences::read(std::int64_t number, std::span<const Run> runs, Rows& rows) const {
  const std::int64_t begin = first_token(number), tokens = corpus_->info().tokens;
  const std::vector<Segment> segments =
      segments_of(documents(number), rules_, *corpus_, (begin + seq_len_ - 1) % tokens + 1);
  for (const Run& run : runs) {
    LONGHAUL_CHECK(
        run.stride >= 1 && run.first >= 0 && (run.count <= 0 || run[run.count - 1] < seq_len_),
        "rows ", run.first, ", ", run.first + run.stride, ", ... (", run.count,
        ") of a sequence of ", seq_len_, " tokens");
    // Part by part, each the run's in one segment.
    auto segment = std::ranges::upper_bound(segments, run.first, {}, &Segment::end);
    for (std::int64_t done = 0; done < run.count;) {
      const std::int64_t first = run[done];
      while (segment->end <= first) ++segment;
      const std::int64_t inside = (segment->end - 1 - first) / run.stride + 1;
      const Run part{first, std::min(run.count - done, inside), run.stride};
      append_rows(*corpus_, (begin + first) % tokens, part, *segment, rows);
      done += part.count;
    }
  }
  corpus_->require_unchanged();
}

}  // namespace longhaul::runtime

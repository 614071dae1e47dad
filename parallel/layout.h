#pragma once
// Token layouts: a bijection token -> (rank, local row) for any length and any number of ranks.
// Ragged shards are allowed; nothing is padded.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention/head_masks.h"

namespace longhaul::parallel {

enum class LayoutKind : unsigned char {
  contiguous,  ///< rank r holds a range of about S/P tokens
  zigzag,      ///< 2P chunks, rank r holds chunks r and 2P-1-r (balances a causal mask)
  striped,     ///< rank r holds tokens r, r+P, r+2P, ... (Striped Attention, Brandon et al. 2023)
  document_zigzag,  ///< zigzag inside every document (WLB-LLM, Wang et al. 2025), without padding
  balanced,  ///< equal chunks dealt so that ranks have equal mask areas (after MagiAttention)
  packed     ///< documents fill the ranks in order, equal tokens each (DistCA, Zhuang et al. 2025)
};
const char* name(LayoutKind kind);
/// All kinds, in the order above.
std::span<const LayoutKind> layout_kinds();
/// Throws Error(config) listing the known names.
LayoutKind layout_from_name(const std::string& text);
/// Whether the tokens of a rank follow from the mask: then every batch has a layout of its own.
bool depends_on_mask(LayoutKind kind);

/// Which tokens each rank holds, in local row order. A batch of B sequences of S tokens is one
/// token axis of B * S tokens; a rank's tokens rise. The kinds that do not depend on the mask shard
/// every sequence alike.
///
/// `document_zigzag`: a document is a part of attention::independent_parts(). It is cut in 2P
/// chunks whose lengths differ by at most one, and rank r takes chunks r and 2P-1-r. The remaining
/// L mod 2P tokens go to the ranks in turn, and the next document continues where this one stopped:
/// over the whole axis no rank holds more than one token more than another, however short the
/// documents. A rank that is given one of them lengthens its late chunk, whose rows see more, while
/// its causal area so far is at most the mean, else its early one, so areas stay close too.
/// (Padding each document to a multiple of 2P would make both exact, and hold up to 2P-1 empty rows
/// for each.) Many short documents make many short runs: tiles are then mostly empty, and every
/// rank needs nearly every key.
///
/// `balanced`: the axis is cut in k P equal chunks, of whole tiles where possible, and a rest that
/// is cut in P nearly equal pieces; a rank takes k chunks and a piece, so ranks differ by at most
/// one token. A chunk weighs the mask's area of its rows, all heads together. k is the smallest
/// power of two with which the largest area of a rank is at most kBalanceTarget of the mean; where
/// none is (one row may weigh too much), the one with the least largest area. Among ranks nearly
/// equally loaded a chunk goes to one that holds a piece of its document.
///
/// `packed`: the tokens of the axis are dealt evenly, to one, and documents fill the ranks in
/// order. A document that does not fit in the room left is cut: each rank takes as many of its rows
/// as it has room for, half of them from the front of what is left and the rest from the back, so
/// that its causal area is that of as many average rows. Short documents stay whole, on one rank.
class Layout {
 public:
  /// A layout that does not depend on the mask; Error(internal) for the other kinds.
  Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch, int ranks);
  /// Any kind. `masks` are over the batch's tokens, its sequences along the diagonal: of the heads
  /// of one layer, or of all layers of a model in the heads' place. A pure function: all ranks get
  /// the same from the same masks.
  static Layout make(LayoutKind kind, const attention::HeadMasks& masks, std::int64_t batch,
                     int ranks);
  /// The same with so many ranks more, which hold no token.
  Layout with_empty_ranks(int count) const;

  LayoutKind kind() const { return kind_; }
  std::int64_t seq_len() const { return seq_len_; }
  std::int64_t batch() const { return batch_; }
  int ranks() const { return static_cast<int>(runs_.size()); }
  /// batch * seq_len.
  std::int64_t tokens() const { return seq_len_ * batch_; }
  /// The runs of global tokens that make up a rank's rows; no empty runs.
  const std::vector<attention::Run>& runs(int rank) const {
    return runs_[static_cast<std::size_t>(rank)];
  }
  std::int64_t rows(int rank) const { return rows_[static_cast<std::size_t>(rank)]; }
  /// Global token of every local row, in order.
  std::vector<std::int64_t> tokens_of(int rank) const;
  /// Tokens of the longest piece that was dealt as one.
  std::int64_t chunk_tokens() const { return chunk_tokens_; }
  /// 64-bit digest of all ranks' runs: what schedules are a function of.
  std::uint64_t digest() const { return digest_; }

 private:
  Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch,
         std::vector<std::vector<attention::Run>> runs, std::int64_t chunk_tokens);

  LayoutKind kind_;
  std::int64_t seq_len_, batch_, chunk_tokens_;
  std::vector<std::vector<attention::Run>> runs_;
  std::vector<std::int64_t> rows_;
  std::uint64_t digest_;
};

/// The sequences whose first token, and whose last, a rank holds, rising.
struct SequenceEnds {
  std::vector<std::int64_t> beginning, ending;
};
SequenceEnds sequence_ends(const Layout& layout, int rank);

/// What `balanced` aims at: the largest area of a rank over the mean.
constexpr double kBalanceTarget = 1.05;

/// Visible pairs of each rank's queries, summed over heads (one head's when all share a mask).
std::vector<std::int64_t> query_areas(const attention::HeadMasks& masks, const Layout& layout);

}  // namespace longhaul::parallel

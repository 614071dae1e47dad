#pragma once
// Token layouts: a bijection token -> (rank, local row) for any length and any number of ranks.
// Ragged shards are allowed; nothing is padded.

#include <cstdint>
#include <string>
#include <vector>

#include "attention/mask.h"

namespace longhaul::parallel {

enum class LayoutKind : unsigned char {
  contiguous,  ///< rank r holds a range of about S/P tokens
  zigzag,      ///< 2P chunks, rank r holds chunks r and 2P-1-r (balances a causal mask)
  striped      ///< rank r holds tokens r, r+P, r+2P, ... (Striped Attention, Brandon et al. 2023)
};
const char* name(LayoutKind kind);
std::vector<std::string> layout_names();
/// Throws Error(config) listing the known names.
LayoutKind layout_from_name(const std::string& text);

/// Which tokens each rank holds, in local row order. A batch of B sequences of S tokens is one
/// token axis of B * S tokens: sequence b's shard of a rank follows sequence b-1's.
class Layout {
 public:
  Layout(LayoutKind kind, std::int64_t seq_len, std::int64_t batch, int ranks);

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

 private:
  LayoutKind kind_;
  std::int64_t seq_len_, batch_;
  std::vector<std::vector<attention::Run>> runs_;
  std::vector<std::int64_t> rows_;
};

}  // namespace longhaul::parallel

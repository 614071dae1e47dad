#pragma once
// Pretended compute: softmax attention that only takes the time of a model (attention/pretence.h),
// so that the imbalance of more ranks than there are cores shows as time.

#include <map>
#include <string>

#include "attention/pretence.h"

namespace longhaul::launch {

/// The model, by rank.
struct Pretending {
  attention::Pretence model = {};
  std::map<int, double> slowdowns = {};  ///< of ranks that are slower than the model says

  attention::Pretence of_rank(int rank) const;
  /// Throws Error(usage) where a rank is named that is none of so many.
  void check_ranks(int ranks) const;
  /// As it is given, in full: "flops=2e+09,rows=260,partial=1.5,seconds=0,slow=3:3".
  std::string text() const;
};

/// "KEY=VALUE,KEY=VALUE,..." of flops (a second), rows, partial, seconds, slow (FACTOR of every
/// rank, or RANK:FACTOR, which may come again for others); what is not given has its default.
/// Throws Error(usage) naming what it does not understand.
Pretending parse_pretending(const std::string& text);

/// What `--pretend` without a value means.
inline constexpr const char* kDefaultPretending = "flops=2e9";

}  // namespace longhaul::launch

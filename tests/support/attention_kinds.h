#pragma once
// The kinds of bands and of scoring that every kernel is tried on, and two documents in one call.

#include <functional>
#include <string>
#include <vector>

#include "tests/support/attention_case.h"

namespace longhaul::test {

struct NamedBands {
  std::string name;
  std::vector<attention::Slice> bands;
};
/// Every kind of band, over at least 120 queries and keys.
std::vector<NamedBands> band_kinds(std::int64_t q_rows, std::int64_t k_rows);

struct NamedScoring {
  std::string name;
  attention::Scoring scoring;  ///< the scale is left to the case
  bool sinks = false;
  /// Keeps the case's scale; sinks, one a head, lie between -1 and 3.
  void apply(AttentionCase& which) const;
};
/// Plain softmax; softcap; sinks; sigmoid; and what of them goes together.
std::vector<NamedScoring> scoring_kinds();

/// Causal documents [0, split) and [split, tokens) in one call; the second one's rows are compared.
struct TwoDocuments {
  AttentionCase which;
  std::int64_t split;
  TwoDocuments(std::int64_t tokens, std::int64_t split, const NamedScoring& scoring);
  /// Changes q, k, v and dout of the first document.
  void replace_first(const std::function<float(float)>& change);
  AttentionResult second(const AttentionResult& all) const;
};

/// Makes every score of a softmax `offset` and something of a few units, exactly also in bfloat16:
/// scale 1/4, the first element of q is 4 and of k the offset (of at most 8 bits), the others are
/// multiples of 1/16, so that no product is rounded. A sink, where there are some, is near.
void share_offset(AttentionCase& c, float offset);

}  // namespace longhaul::test

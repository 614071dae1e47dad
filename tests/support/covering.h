#pragma once
// Samples of the product scheme x mask x layout x heads in which every legal pair still occurs, and
// the count of pairs that proves it.

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/support/spread_attention.h"

namespace longhaul::test {

using Problems = std::vector<std::unique_ptr<Problem>>;

/// Heads that Ulysses can share among `ranks`: as many key/value heads (MHA), four queries a
/// key/value head (4:1), one key/value head (MQA). Of `dim` each.
std::vector<ProblemSizes> head_counts(int ranks, std::int64_t dim = 8, bool bf16 = false);

/// Every mask by name over n tokens, those that differ by head, and shapes that no name has. Names
/// differ.
Problems every_mask(std::int64_t n, const ProblemSizes& sizes);

/// Every problem over every layout under every scheme with all its options, as far as legal.
std::vector<SpreadJob> every_job(const Problems& problems, int ranks);

/// What a job covers, in words: (scheme, layout), (scheme, mask), (mask, layout), (scheme, heads),
/// (scheme, dtype), and the scheme with its options.
std::set<std::string> pairs_of(const SpreadJob& job);
std::set<std::string> pairs_of(const std::vector<SpreadJob>& jobs);
/// "ring over zigzag": the one of them that every number of ranks should have.
std::string scheme_and_layout(const SpreadJob& job);
/// "ring over zigzag under causal".
std::string triple_of(const SpreadJob& job);

/// Every pair that must be legal on `ranks` ranks, from names alone: no scheme is asked. The
/// problems' heads must suit Ulysses over all of the ranks.
struct LegalPairs {
  std::set<std::string> scheme_and_layout, others;
  std::set<std::string> triples;
  std::set<std::string> all() const;  ///< pairs
};
LegalPairs legal_pairs(const Problems& problems, int ranks);

/// A sample of the candidates, chosen greedily and always alike, that covers all of `required` that
/// they can cover, as much of `wished` beside it as comes along, and then more triples until there
/// are `at_least` jobs.
std::vector<SpreadJob> covering_sample(const std::vector<SpreadJob>& candidates,
                                       const std::set<std::string>& required,
                                       const std::set<std::string>& wished = {},
                                       std::size_t at_least = 0);

/// What `whole` has and `part` lacks, a line each; empty when nothing.
std::string missing(const std::set<std::string>& part, const std::set<std::string>& whole);

}  // namespace longhaul::test

#include "tests/support/covering.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "runtime/error.h"
#include "tests/support/mask_words.h"
#include "tests/support/random_masks.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::test {

using parallel::Expression;
using parallel::Layout;
using parallel::LayoutKind;

std::vector<ProblemSizes> head_counts(int ranks, std::int64_t dim, bool bf16) {
  const int some = std::max(2, ranks);
  std::vector<ProblemSizes> all{{some, some}, {4 * some, some}, {some, 1}};
  if (ranks > 8) all[1] = {ranks, ranks / 4};
  for (ProblemSizes& sizes : all) {
    sizes.dim = sizes.value_dim = dim;
    sizes.bf16 = bf16;
  }
  return all;
}

Problems every_mask(std::int64_t n, const ProblemSizes& sizes) {
  Problems all;
  std::set<std::string> names;
  for (const auto& [name, parameters] : mask_samples(n, sizes.heads)) {
    const auto masks = attention::make_mask(name, parameters, n);
    const bool again = !names.insert(name).second, window = again && masks.shared();
    // Of windows within documents the most irregular: bands that end in the middle of rectangles.
    if (window && name != "shared_question") continue;
    const char* const what = window ? " with a window" : again ? " by head" : "";
    all.push_back(std::make_unique<Problem>(name + what, masks, sizes));
  }
  for (const auto& [name, mask] : assorted_masks(n)) {
    if (name == "documents of one token" || name == "assorted")
      all.push_back(std::make_unique<Problem>(name, mask, sizes));
  }
  all.push_back(std::make_unique<Problem>("assorted by head",
                                          masks_by_head(n, static_cast<int>(sizes.heads)), sizes));
  return all;
}

std::vector<SpreadJob> every_job(const Problems& problems, int ranks) {
  std::vector<SpreadJob> jobs;
  for (const auto& problem : problems) {
    const auto shapes = problem->shapes();
    const bool causal = parallel::is_causal(problem->masks),
               whole_past = parallel::sees_whole_past(problem->masks);
    for (const Layout& layout : all_layouts(problem->masks, 1, ranks)) {
      for (const Expression& scheme : all_schemes(ranks, shapes.heads, shapes.kv_heads)) {
        if (!parallel::refuse({scheme, ranks, shapes.heads, shapes.kv_heads, layout.kind(), causal,
                               parallel::Family::softmax, whole_past}))
          jobs.push_back({problem.get(), layout, scheme});
      }
    }
  }
  return jobs;
}

namespace {

std::string heads_of(const Problem& problem) {
  const auto& c = problem.inputs;
  if (c.heads == c.kv_heads) return "MHA";
  return c.kv_heads == 1 ? "MQA" : runtime::concat(c.heads / c.kv_heads, ":1");
}

/// Pairs of names; scheme_and_layout apart.
std::string over(const std::string& what, LayoutKind layout) {
  return what + " over " + name(layout);
}
std::set<std::string> pairs_beside(const std::string& scheme, const Problem& problem,
                                   LayoutKind layout) {
  return {scheme + " under " + problem.name, over(problem.name, layout),
          scheme + " with " + heads_of(problem),
          scheme + (problem.inputs.bf16 ? " of bfloat16" : " of float32")};
}

/// Whether a query of any head sees a later key, pair by pair.
bool sees_later_key(const attention::HeadMasks& masks, std::int64_t heads) {
  const std::int64_t n = masks.tokens();
  for (int head = 0; head < heads; ++head) {
    const Bitmap visible(n, n, masks.of(head).slices());
    for (std::int64_t query = 0; query < n; ++query) {
      for (std::int64_t key = query + 1; key < n; ++key) {
        if (visible.at(query, key) > 0) return true;
      }
    }
  }
  return false;
}

/// Whether every query of every head sees each token from where its document begins to itself, pair
/// by pair.
bool sees_past_of_document(const attention::HeadMasks& masks, std::int64_t heads) {
  const std::int64_t n = masks.tokens();
  std::int64_t begin = 0;
  const Bitmap first(n, n, masks.of(0).slices());
  for (int head = 0; head < heads; ++head) {
    const Bitmap visible(n, n, masks.of(head).slices());
    for (std::int64_t query = 0; query < n; ++query) {
      if (query == 0 || first.at(query, query - 1) == 0) begin = query;
      for (std::int64_t key = 0; key < n; ++key) {
        if ((visible.at(query, key) > 0) != (begin <= key && key <= query)) return false;
      }
    }
  }
  return true;
}

}  // namespace

std::string scheme_and_layout(const SpreadJob& job) {
  return over(job.scheme.name, job.layout.kind());
}
std::string triple_of(const SpreadJob& job) {
  return scheme_and_layout(job) + " under " + job.problem->name;
}

std::set<std::string> pairs_of(const SpreadJob& job) {
  auto pairs = pairs_beside(job.scheme.name, *job.problem, job.layout.kind());
  pairs.insert(scheme_and_layout(job));
  pairs.insert("options " + show(job.scheme));
  return pairs;
}
std::set<std::string> pairs_of(const std::vector<SpreadJob>& jobs) {
  std::set<std::string> all;
  for (const SpreadJob& job : jobs) all.merge(pairs_of(job));
  return all;
}

std::set<std::string> LegalPairs::all() const {
  std::set<std::string> both = scheme_and_layout;
  both.insert(others.begin(), others.end());
  return both;
}

LegalPairs legal_pairs(const Problems& problems, int ranks) {
  LegalPairs pairs;
  for (const auto& problem : problems) {
    const auto& c = problem->inputs;
    LONGHAUL_CHECK(c.heads % ranks == 0 && (c.kv_heads % ranks == 0 || ranks % c.kv_heads == 0),
                   c.heads, "/", c.kv_heads, " heads do not suit ulysses over ", ranks, " ranks");
    const bool later = sees_later_key(problem->masks, c.heads),
               past = sees_past_of_document(problem->masks, c.heads);
    for (const std::string& scheme : parallel::scheme_names()) {
      for (const LayoutKind layout : parallel::layout_kinds()) {
        if (scheme == "balanced_ring" && (layout != LayoutKind::contiguous || later)) continue;
        if (scheme == "disaggregated" && (layout == LayoutKind::striped || !past)) continue;
        pairs.scheme_and_layout.insert(over(scheme, layout));
        pairs.others.merge(pairs_beside(scheme, *problem, layout));
        pairs.triples.insert(over(scheme, layout) + " under " + problem->name);
      }
    }
  }
  for (int inner = 1; inner <= ranks; ++inner) {
    if (ranks % inner != 0) continue;
    for (const char* backward : {"ring", "burst"}) {
      pairs.others.insert(runtime::concat("options double_ring(outer=", ranks / inner,
                                          ", inner=", inner, ", backward=", backward, ")"));
    }
    for (const char* nesting : {"", ", nesting=ring_inside"}) {
      for (const char* around : {"", ", around=burst", ", around=double_ring"})
        pairs.others.insert(runtime::concat("options usp(heads=", inner, nesting, around, ")"));
    }
  }
  for (const std::string& scheme : parallel::scheme_names()) {
    if (scheme != "double_ring" && scheme != "usp" && scheme != "disaggregated")
      pairs.others.insert("options " + scheme);
  }
  for (const char* resend : {"", ", resend=false"})
    pairs.others.insert(runtime::concat("options disaggregated(tolerance=0.0", resend, ")"));
  return pairs;
}

std::vector<SpreadJob> covering_sample(const std::vector<SpreadJob>& candidates,
                                       const std::set<std::string>& required,
                                       const std::set<std::string>& wished, std::size_t at_least) {
  // Every pair a number; what a new one is worth depends on who asked for it.
  constexpr std::int64_t kRequired = 1'000'000, kWished = 1'000, kTriple = 1;
  std::map<std::string, std::size_t> numbers;
  std::vector<std::int64_t> worth;
  const auto number_of = [&](const std::string& pair, std::int64_t value) {
    const auto [at, added] = numbers.emplace(pair, worth.size());
    if (added) worth.push_back(value);
    return at->second;
  };
  std::vector<std::vector<std::size_t>> features(candidates.size());
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    for (const std::string& pair : pairs_of(candidates[c])) {
      features[c].push_back(number_of(pair, required.contains(pair) ? kRequired
                                            : wished.contains(pair) ? kWished
                                                                    : 0));
    }
    features[c].push_back(number_of("triple " + triple_of(candidates[c]), kTriple));
  }
  // Equally good ones are taken from all over the list: in steps of a number prime to its length.
  std::size_t step = candidates.size() * 618 / 1000 + 1;
  while (std::gcd(step, candidates.size()) != 1) ++step;
  std::vector<SpreadJob> sample;
  for (std::size_t at = 0;;) {
    std::int64_t most = 0;
    std::size_t best = 0;
    for (std::size_t i = 0; i < candidates.size(); ++i, at = (at + step) % candidates.size()) {
      std::int64_t value = 0;
      for (const std::size_t feature : features[at]) value += worth[feature];
      if (value > most) {
        most = value;
        best = at;
      }
    }
    if (most == 0 || (most < kRequired && sample.size() >= at_least)) return sample;
    for (const std::size_t feature : features[best]) worth[feature] = 0;
    sample.push_back(candidates[best]);
    at = (best + step) % candidates.size();
  }
}

std::string missing(const std::set<std::string>& part, const std::set<std::string>& whole) {
  std::string lines;
  for (const std::string& one : whole) {
    if (!part.contains(one)) lines += one + "\n";
  }
  return lines;
}

}  // namespace longhaul::test

#include "tests/support/attention_kinds.h"

#include <algorithm>

namespace longhaul::test {

using attention::kUnbounded;
using attention::Slice;
using attention::Weighting;

std::vector<NamedBands> band_kinds(std::int64_t q_rows, std::int64_t k_rows) {
  std::vector<Slice> single, short_documents;
  for (std::int64_t i = 0; i < std::min(q_rows, k_rows); ++i)
    single.push_back({i, i + 1, i, i + 1});
  for (std::int64_t at = 0, length = 1; at < std::min(q_rows, k_rows);
       at += length, length = length % 13 + 1) {
    const std::int64_t end = std::min(at + length, std::min(q_rows, k_rows));
    short_documents.push_back({at, end, at, end, -kUnbounded, 0});
  }
  const std::int64_t mid_q = q_rows / 2, mid_k = k_rows / 2;
  return {
      {"nothing", {}},
      {"full", {{0, q_rows, 0, k_rows}}},
      {"causal ahead", {{0, q_rows, 0, k_rows, -kUnbounded, 57}}},
      {"causal behind: first rows empty", {{0, q_rows, 0, k_rows, -kUnbounded, -61}}},
      {"window", {{0, q_rows, 0, k_rows, -30, 0}}},
      {"both sides", {{0, q_rows, 0, k_rows, -9, 14}}},
      {"inverse causal", {{0, q_rows, 0, k_rows, 3, kUnbounded}}},
      {"documents of one token", single},
      {"short documents", short_documents},
      {"prefix and window: two bands a row", {{0, q_rows, 0, 11}, {0, q_rows, 11, k_rows, -20, 0}}},
      {"three bands a row",
       {{0, q_rows, 0, 5}, {0, q_rows, 9, 40}, {10, q_rows, 41, k_rows, -3, 200}}},
      {"rows in the middle empty",
       {{0, mid_q - 10, 0, mid_k}, {mid_q + 10, q_rows, mid_k, k_rows}}},
      {"keys at both ends unseen", {{0, q_rows, 20, k_rows - 20}}}};
}

void NamedScoring::apply(AttentionCase& which) const {
  const float scale = which.scoring.scale;
  which.scoring = scoring;
  which.scoring.scale = scale;
  which.sinks.clear();
  std::mt19937 random(17);
  std::uniform_real_distribution<float> uniform(-1, 3);
  for (std::int64_t head = 0; sinks && head < which.heads; ++head)
    which.sinks.push_back(uniform(random));
}

std::vector<NamedScoring> scoring_kinds() {
  // Uniform inputs give scores of about 1: a cap of 0.7 bends them all.
  return {{"softmax", {}},
          {"softcap", {.softcap = 0.7f}},
          {"sinks", {}, true},
          {"softcap, sinks", {.softcap = 0.7f}, true},
          {"sigmoid", {.weighting = Weighting::sigmoid, .bias = -1.25f}},
          {"softcap, sigmoid", {.softcap = 0.7f, .weighting = Weighting::sigmoid, .bias = 0.5f}}};
}

void share_offset(AttentionCase& c, float offset) {
  c.scoring.scale = 0.25f;
  std::mt19937 random(3);
  std::uniform_int_distribution<int> sixteenths(-24, 24);
  for (const auto& [tensor, first] : {std::pair{&c.q, 4.0f}, std::pair{&c.k, offset}}) {
    for (std::size_t i = 0; i < tensor->size(); ++i) {
      const bool begins = i % static_cast<std::size_t>(c.dim) == 0;
      (*tensor)[i] = begins ? first : static_cast<float>(sixteenths(random)) / 16;
    }
  }
  for (float& sink : c.sinks) sink += offset;
}

TwoDocuments::TwoDocuments(std::int64_t tokens, std::int64_t at, const NamedScoring& scoring)
    : which{tokens, tokens, 4, 2, 20, 20}, split(at) {
  which.bands = {{0, at, 0, at, -kUnbounded, 0}, {at, tokens, at, tokens, -kUnbounded, 0}};
  which.fill(1);
  scoring.apply(which);
}

void TwoDocuments::replace_first(const std::function<float(float)>& change) {
  for (auto* values : {&which.q, &which.k, &which.v, &which.dout}) {
    const auto end =
        values->begin() + split * static_cast<std::int64_t>(values->size()) / which.q_rows;
    std::transform(values->begin(), end, values->begin(), change);
  }
}

AttentionResult TwoDocuments::second(const AttentionResult& all) const {
  const auto tail = [&](const std::vector<float>& x) {
    return std::vector<float>(
        x.begin() + split * static_cast<std::int64_t>(x.size()) / which.q_rows, x.end());
  };
  return {.out = tail(all.out),
          .lse = tail(all.lse),
          .dq = tail(all.dq),
          .dk = tail(all.dk),
          .dv = tail(all.dv),
          .lse_low = tail(all.lse_low)};
}

}  // namespace longhaul::test

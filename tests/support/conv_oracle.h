#pragma once
// The short convolution over all tokens, token by token in float64. Shares no code with what it
// tests.

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::test {

/// Seeded inputs: x, dy[n,C], weight[C,K] and bias[C] (empty: none), all representable in float32,
/// x and dy in bfloat16 where asked for.
struct ConvProblem {
  ConvProblem(std::vector<std::int64_t> document_offsets, std::int64_t of_channels,
              std::int64_t of_width, bool with_bias, bool in_bfloat16, unsigned seed);

  std::vector<std::int64_t> documents;
  std::int64_t channels, width;
  bool bfloat16;
  std::vector<double> x, dy, weight, bias;

  std::int64_t tokens() const { return documents.back(); }
  bool has_bias() const { return !bias.empty(); }
  /// One of its documents alone.
  ConvProblem document(std::size_t number) const;
  std::string show() const;
};

struct ConvAnswers {
  std::vector<double> y, dx, dweight, dbias;
  std::vector<double> dweight_terms, dbias_terms;  ///< sums of the terms' magnitudes
};
ConvAnswers conv_answers(const ConvProblem& problem);

/// The error of gradients that are sums over tokens: relative to their norm, or to that of eight
/// roundings of their terms in float32 at 2e-6, where they cancel that far.
double sum_error(const std::vector<double>& actual, const std::vector<double>& exact,
                 const std::vector<double>& terms);

/// Offsets of documents over n tokens: one; all of length 1; some of lengths 0 to 5; two halves.
std::vector<std::vector<std::int64_t>> document_offsets(std::int64_t n);

}  // namespace longhaul::test

#include "tests/support/conv_oracle.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"
#include "tests/support/host_tensors.h"

namespace longhaul::test {

ConvProblem::ConvProblem(std::vector<std::int64_t> document_offsets, std::int64_t of_channels,
                         std::int64_t of_width, bool with_bias, bool in_bfloat16, unsigned seed)
    : documents(std::move(document_offsets)),
      channels(of_channels),
      width(of_width),
      bfloat16(in_bfloat16),
      x(random_values(tokens() * channels, seed, bfloat16)),
      dy(random_values(tokens() * channels, seed + 1, bfloat16)),
      weight(random_values(channels * width, seed + 2)),
      bias(random_values(with_bias ? channels : 0, seed + 3)) {
  for (double& value : x) value *= 4;  // so that silu bends
}

ConvProblem ConvProblem::document(std::size_t number) const {
  ConvProblem one = *this;
  const std::int64_t begin = documents[number] * channels, end = documents[number + 1] * channels;
  one.documents = {0, documents[number + 1] - documents[number]};
  one.x.assign(x.begin() + begin, x.begin() + end);
  one.dy.assign(dy.begin() + begin, dy.begin() + end);
  return one;
}

std::string ConvProblem::show() const {
  std::string text = runtime::concat("K=", width, " C=", channels, has_bias() ? " bias" : "",
                                     bfloat16 ? " bfloat16" : "", " documents");
  for (const std::int64_t offset : documents) text += " " + std::to_string(offset);
  return text;
}

ConvAnswers conv_answers(const ConvProblem& problem) {
  const std::int64_t n = problem.tokens(), channels = problem.channels, width = problem.width;
  std::vector<std::size_t> document_of(static_cast<std::size_t>(n));
  for (std::size_t d = 0; d + 1 < problem.documents.size(); ++d) {
    for (std::int64_t t = problem.documents[d]; t < problem.documents[d + 1]; ++t)
      document_of[static_cast<std::size_t>(t)] = d;
  }
  ConvAnswers answers{
      std::vector<double>(problem.x.size()),      std::vector<double>(problem.x.size()),
      std::vector<double>(problem.weight.size()), std::vector<double>(problem.bias.size()),
      std::vector<double>(problem.weight.size()), std::vector<double>(problem.bias.size())};
  const auto at = [channels](std::int64_t row, std::int64_t c) {
    return static_cast<std::size_t>(row * channels + c);
  };
  for (std::int64_t c = 0; c < channels; ++c) {
    const auto channel = static_cast<std::size_t>(c);
    const double* taps = problem.weight.data() + c * width;
    for (std::int64_t t = 0; t < n; ++t) {
      // Tap k, the oldest first, reads the token width - 1 - k before t.
      const auto reads = [&](std::int64_t k) {
        const std::int64_t from = t - (width - 1 - k);
        const bool seen = from >= 0 && document_of[static_cast<std::size_t>(from)] ==
                                           document_of[static_cast<std::size_t>(t)];
        return seen ? from : -1;
      };
      double pre = problem.has_bias() ? problem.bias[channel] : 0;
      for (std::int64_t k = 0; k < width; ++k) {
        if (reads(k) >= 0) pre += taps[k] * problem.x[at(reads(k), c)];
      }
      const double sigmoid = 1 / (1 + std::exp(-pre));
      answers.y[at(t, c)] = pre * sigmoid;
      const double dpre = problem.dy[at(t, c)] * (sigmoid + pre * sigmoid * (1 - sigmoid));
      for (std::int64_t k = 0; k < width; ++k) {
        if (reads(k) < 0) continue;
        answers.dx[at(reads(k), c)] += dpre * taps[k];
        const double term = dpre * problem.x[at(reads(k), c)];
        answers.dweight[static_cast<std::size_t>(c * width + k)] += term;
        answers.dweight_terms[static_cast<std::size_t>(c * width + k)] += std::abs(term);
      }
      if (!problem.has_bias()) continue;
      answers.dbias[channel] += dpre;
      answers.dbias_terms[channel] += std::abs(dpre);
    }
  }
  return answers;
}

double sum_error(const std::vector<double>& actual, const std::vector<double>& exact,
                 const std::vector<double>& terms) {
  constexpr double kRounding = 1.0 / (1 << 24);
  double error = 0, norm = 0, rounded = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += (actual[i] - exact[i]) * (actual[i] - exact[i]);
    norm += exact[i] * exact[i];
    rounded += terms[i] * terms[i];
  }
  const double scale = std::max(std::sqrt(norm), 8 * kRounding / 2e-6 * std::sqrt(rounded));
  return error > 0 ? std::sqrt(error) / scale : 0;
}

std::vector<std::vector<std::int64_t>> document_offsets(std::int64_t n) {
  std::vector<std::int64_t> ones, some{0};
  for (std::int64_t t = 0; t <= n; ++t) ones.push_back(t);
  for (std::int64_t i = 0; some.back() < n; ++i)
    some.push_back(std::min(n, some.back() + (5 * i + 2) % 6));
  return {{0, n}, ones, some, {0, n / 2, n}};
}

}  // namespace longhaul::test

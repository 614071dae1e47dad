#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

struct RowSums {
  float maximum = 0;
  double exponentials = 0;  // sum of e^(logit - maximum)
};

RowSums row_sums(const float* logits, std::int64_t vocabulary) {
  RowSums sums;
  float maximum = logits[0];
#pragma omp simd reduction(max : maximum)
  for (std::int64_t i = 0; i < vocabulary; ++i) maximum = std::max(maximum, logits[i]);
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    total += static_cast<double>(exponential(logits[i] - maximum));
  }
  sums.maximum = maximum;
  sums.exponentials = total;
  return sums;
}

double row_loss_of(const RowSums& sums, float label_logit) {
  return std::log(sums.exponentials) +
         (static_cast<double>(sums.maximum) - static_cast<double>(label_logit));
}

/// The labels of a chunk's rows, in memory.
struct Rows {
  Rows(const Labels& labels)
      : labels_(labels.tokens.as<std::int32_t>()),
        weights_(labels.weights.data() == nullptr ? nullptr : labels.weights.as<float>()) {}

  std::int32_t label(std::int64_t row) const { return labels_[row]; }
  /// Of the row's loss: 0 without a label.
  double weight(std::int64_t row) const {
    if (labels_[row] < 0) return 0;
    return weights_ == nullptr ? 1 : static_cast<double>(weights_[row]);
  }

 private:
  const std::int32_t* labels_;
  const float* weights_;
};

void check_labels(const Rows& labels, std::int64_t rows, std::int64_t vocabulary) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (const double weight = labels.weight(row); !(weight >= 0 && std::isfinite(weight))) {
      fail(ExitCode::data, "the label in row ", row, " of the chunk weighs ", weight,
           "; expected a finite weight of at least 0");
    }
    const std::int32_t label = labels.label(row);
    if (label >= -1 && label < vocabulary) continue;
    fail(ExitCode::data, "label ", label, " in row ", row,
         " of the chunk is outside the vocabulary of ", vocabulary, " tokens (-1 means none)");
  }
}

/// weight * row loss; dlogits, the front of the logits' memory, becomes scale * weight *
/// (softmax - one-hot) in T, times the slope of a cap.
template <class T>
double backward_row(const float* logits, std::int32_t label, double weight,
                    const LogitsGradient& gradient, std::byte* dlogits, std::int64_t vocabulary) {
  constexpr std::int64_t kTile = 256;
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  if (weight == 0) {
    std::fill_n(dlogits, vocabulary * kBytes, std::byte{0});  // 0 in any dtype
    return 0;
  }
  const RowSums sums = row_sums(logits, vocabulary);
  const double loss = row_loss_of(sums, logits[label]);
  const double scale = gradient.scale * weight;
  const bool capped = gradient.softcap > 0;
  const auto inverse = static_cast<float>(capped ? 1 / gradient.softcap : 0);
  const auto factor = static_cast<float>(scale / sums.exponentials);
  // p - 1 from the other side, so that a confident row keeps its digits: p - 1 = -(1 - e^-loss).
  auto at_label = static_cast<float>(scale * std::expm1(-loss));
  if (capped) at_label *= softcap_slope(logits[label], inverse);
  // A tile is written after it was read: it lies over its own logits and those before.
  for (std::int64_t begin = 0; begin < vocabulary; begin += kTile) {
    const std::int64_t count = std::min(kTile, vocabulary - begin);
    std::array<T, kTile> tile;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      const float logit = logits[begin + i];  // without a cap it may be -inf
      put(tile[static_cast<std::size_t>(i)], exponential(logit - sums.maximum) * factor *
                                                 softcap_slope(capped ? logit : 0.0f, inverse));
    }
    if (begin <= label && label < begin + count)
      put(tile[static_cast<std::size_t>(label - begin)], at_label);
    std::memcpy(dlogits + begin * kBytes, tile.data(), static_cast<std::size_t>(count * kBytes));
  }
  return weight * loss;
}

}  // namespace

void cpu_cross_entropy_backward(ConstTensorView logits, const Labels& labels,
                                const LogitsGradient& gradient, TensorView dlogits,
                                TensorView loss_sum, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  const std::int64_t row_bytes = dlogits.stride(0) * size_bytes(dlogits.dtype());
  const Buffer losses = stream.allocate(rows * static_cast<std::int64_t>(sizeof(double)));
  auto* row_losses = reinterpret_cast<double*>(losses.data());
  with_activation("cross_entropy_backward", dlogits.dtype(), [&]<class T>() {
    stream.cpu_task([=, values = logits.as<float>(), to = dlogits.data(), of = Rows(labels),
                     sum = loss_sum.as<double>()] {
      check_labels(of, rows, vocabulary);
#pragma omp parallel for if (rows * vocabulary >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        row_losses[row] = backward_row<T>(values + row * vocabulary, of.label(row), of.weight(row),
                                          gradient, to + row * row_bytes, vocabulary);
      }
      for (std::int64_t row = 0; row < rows; ++row) *sum += row_losses[row];
    });
  });
}

void cpu_cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                       TensorView row_loss, TensorView row_correct, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  const Buffer losses = stream.allocate(rows * static_cast<std::int64_t>(sizeof(double)));
  auto* row_losses = reinterpret_cast<double*>(losses.data());
  stream.cpu_task([=, values = logits.as<float>(), of = Rows(labels), sum = loss_sum.as<double>(),
                   loss_out = row_loss.as<float>(), correct = row_correct.as<std::uint8_t>()] {
    check_labels(of, rows, vocabulary);
#pragma omp parallel for if (rows * vocabulary >= kParallelElements)
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* line = values + row * vocabulary;
      const std::int32_t label = of.label(row);
      const double weight = of.weight(row);
      const double loss = weight > 0 ? row_loss_of(row_sums(line, vocabulary), line[label]) : 0.0;
      row_losses[row] = weight * loss;
      loss_out[row] = static_cast<float>(loss);
      correct[row] =
          weight > 0 && std::max_element(line, line + vocabulary) == line + label ? 1 : 0;
    }
    for (std::int64_t row = 0; row < rows; ++row) *sum += row_losses[row];
  });
}

}  // namespace longhaul::runtime::ops::detail

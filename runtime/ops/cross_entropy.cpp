#include "runtime/ops/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "runtime/ops/cpu_only.h"
#include "runtime/ops/exponential.h"

namespace longhaul::runtime::ops {
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
    total += static_cast<double>(detail::exponential(logits[i] - maximum));
  }
  sums.maximum = maximum;
  sums.exponentials = total;
  return sums;
}

double row_loss_of(const RowSums& sums, float label_logit) {
  return std::log(sums.exponentials) +
         (static_cast<double>(sums.maximum) - static_cast<double>(label_logit));
}

void check_labels(const std::int32_t* labels, std::int64_t rows, std::int64_t vocabulary) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (labels[row] >= -1 && labels[row] < vocabulary) continue;
    fail(ExitCode::data, "label ", labels[row], " in row ", row,
         " of the chunk is outside the vocabulary of ", vocabulary, " tokens (-1 means none)");
  }
}

void check(const char* op, const ConstTensorView& logits, const ConstTensorView& labels,
           const ConstTensorView& loss_sum) {
  LONGHAUL_CHECK(logits.dims() == 2, op, ": logits have ", logits.dims(),
                 " dims; expected [rows, V]");
  detail::require_shape(op, "logits", logits, {logits.size(0), logits.size(1)});
  detail::require_dtype(op, "logits", logits, {DType::float32});
  detail::require_shape(op, "labels", labels, {logits.size(0)});
  detail::require_dtype(op, "labels", labels, {DType::int32});
  detail::require_shape(op, "loss_sum", loss_sum, {1});
  detail::require_dtype(op, "loss_sum", loss_sum, {DType::float64});
  LONGHAUL_CHECK(logits.size(1) > 0, op, ": the vocabulary is empty");
}

/// Row loss; logits become scale * (softmax - one-hot).
double backward_row(float* logits, std::int32_t label, double scale, std::int64_t vocabulary) {
  if (label < 0) {
    std::fill(logits, logits + vocabulary, 0.0f);
    return 0;
  }
  const RowSums sums = row_sums(logits, vocabulary);
  const double loss = row_loss_of(sums, logits[label]);
  const auto factor = static_cast<float>(scale / sums.exponentials);
#pragma omp simd
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    logits[i] = detail::exponential(logits[i] - sums.maximum) * factor;
  }
  // p - 1 from the other side, so that a confident row keeps its digits: p - 1 = -(1 - e^-loss).
  logits[label] = static_cast<float>(scale * std::expm1(-loss));
  return loss;
}

}  // namespace

void cross_entropy_backward(TensorView logits, ConstTensorView labels, double scale,
                            TensorView loss_sum, const Stream& stream) {
  detail::require_cpu("cross_entropy", stream);
  check("cross_entropy", logits, labels, loss_sum);
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  if (rows == 0) return;
  const Buffer losses = stream.allocate(rows * static_cast<std::int64_t>(sizeof(double)));
  auto* row_losses = reinterpret_cast<double*>(losses.data());
  stream.enqueue([=, values = logits.as<float>(), label = labels.as<std::int32_t>(),
                  sum = loss_sum.as<double>()] {
    check_labels(label, rows, vocabulary);
#pragma omp parallel for if (rows * vocabulary >= detail::kParallelElements)
    for (std::int64_t row = 0; row < rows; ++row) {
      row_losses[row] = backward_row(values + row * vocabulary, label[row], scale, vocabulary);
    }
    for (std::int64_t row = 0; row < rows; ++row) *sum += row_losses[row];
  });
}

void cross_entropy(ConstTensorView logits, ConstTensorView labels, TensorView loss_sum,
                   TensorView row_loss, TensorView row_correct, const Stream& stream) {
  detail::require_cpu("cross_entropy", stream);
  check("cross_entropy", logits, labels, loss_sum);
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  detail::require_shape("cross_entropy", "row_loss", row_loss, {rows});
  detail::require_shape("cross_entropy", "row_correct", row_correct, {rows});
  if (rows == 0) return;
  const Buffer losses = stream.allocate(rows * static_cast<std::int64_t>(sizeof(double)));
  auto* row_losses = reinterpret_cast<double*>(losses.data());
  stream.enqueue([=, values = logits.as<float>(), label = labels.as<std::int32_t>(),
                  sum = loss_sum.as<double>(), loss_out = row_loss.as<float>(),
                  correct = row_correct.as<std::uint8_t>()] {
    check_labels(label, rows, vocabulary);
#pragma omp parallel for if (rows * vocabulary >= detail::kParallelElements)
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* line = values + row * vocabulary;
      const bool real = label[row] >= 0;
      row_losses[row] = real ? row_loss_of(row_sums(line, vocabulary), line[label[row]]) : 0.0;
      loss_out[row] = static_cast<float>(row_losses[row]);
      correct[row] = real && std::max_element(line, line + vocabulary) == line + label[row] ? 1 : 0;
    }
    for (std::int64_t row = 0; row < rows; ++row) *sum += row_losses[row];
  });
}

}  // namespace longhaul::runtime::ops

#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

// Columns of the gradient that one thread adds to: no two threads share one.
constexpr std::int64_t kColumns = 64;

void check_tokens(const std::int32_t* tokens, std::int64_t rows, std::int64_t vocabulary) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (tokens[row] >= 0 && tokens[row] < vocabulary) continue;
    fail(ExitCode::data, "token ", tokens[row], " in row ", row, " is outside the vocabulary of ",
         vocabulary, " tokens");
  }
}

}  // namespace

void cpu_embedding(ConstTensorView table, ConstTensorView tokens, TensorView out,
                   const Stream& stream) {
  const std::int64_t rows = tokens.size(0), vocabulary = table.size(0), h = table.size(1);
  const std::int32_t* ids = tokens.as<std::int32_t>();
  with_activation("embedding", table.dtype(), [&]<class From>() {
    with_activation("embedding", out.dtype(), [&]<class To>() {
      stream.cpu_task([=, from = table.as<From>(), to = out.as<To>()] {
        check_tokens(ids, rows, vocabulary);
#pragma omp parallel for if (rows * h >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          const From* source = from + ids[row] * h;
          To* target = to + row * h;
#pragma omp simd
          for (std::int64_t i = 0; i < h; ++i) put(target[i], to_float(source[i]));
        }
      });
    });
  });
}

void cpu_embedding_backward(ConstTensorView dout, ConstTensorView tokens, TensorView dtable,
                            const Stream& stream) {
  const std::int64_t rows = tokens.size(0), vocabulary = dtable.size(0), h = dtable.size(1);
  const std::int32_t* ids = tokens.as<std::int32_t>();
  float* to = dtable.as<float>();
  with_activation("embedding_backward", dout.dtype(), [&]<class T>() {
    stream.cpu_task([=, from = dout.as<T>()] {
      check_tokens(ids, rows, vocabulary);
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t begin = 0; begin < h; begin += kColumns) {
        const std::int64_t end = std::min(h, begin + kColumns);
        for (std::int64_t row = 0; row < rows; ++row) {
          float* target = to + ids[row] * h;
          const T* source = from + row * h;
#pragma omp simd
          for (std::int64_t i = begin; i < end; ++i) target[i] += to_float(source[i]);
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

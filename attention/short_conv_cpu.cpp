// Short convolutions on the CPU: loops that the compiler vectorises for each target.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/short_conv_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "attention/short_conv_impl.h"
#include "runtime/ops/exponential.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using runtime::BFloat16;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

// A unit of work is a block of rows and channels: what it reads of the weights stays in registers
// and the first cache.
constexpr std::int64_t kRows = 64;
constexpr std::int64_t kChannels = 256;
/// Work below this many elements stays on the stream's thread.
constexpr std::int64_t kParallelElements = 32768;

std::int64_t blocks(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }

/// Rows of an activation and of a halo that continues them.
template <class T>
struct Source {
  const T* rows;
  std::int64_t stride;
  const T* halo;
  std::int64_t halo_stride;
  Source(const ConstTensorView& of, const ConstTensorView& continued)
      : rows(of.as<T>()),
        stride(of.stride(0)),
        halo(continued.as<T>()),
        halo_stride(continued.stride(0)) {}
};

/// The rows that a row's taps read, the row itself first.
template <class T>
using TapRows = std::array<const T*, kMaxConvWidth>;

/// The row and those before it in its document; returns how many.
template <class T>
std::int64_t rows_before(const Source<T>& x, const ConvPiece& piece, std::int64_t row,
                         std::int64_t width, TapRows<T>& taps) {
  const std::int64_t inside = row - piece.row_begin + 1;
  const std::int64_t count = std::min(width, inside + piece.left_rows);
  for (std::int64_t j = 0; j < count; ++j) {
    taps[static_cast<std::size_t>(j)] =
        j < inside
            ? x.rows + (row - j) * x.stride
            : x.halo + (piece.left_begin + piece.left_rows - 1 - (j - inside)) * x.halo_stride;
  }
  return count;
}

/// The row and those behind it in its document; returns how many.
template <class T>
std::int64_t rows_behind(const Source<T>& dpre, const ConvPiece& piece, std::int64_t row,
                         std::int64_t width, TapRows<T>& taps) {
  const std::int64_t inside = piece.row_end - row;
  const std::int64_t count = std::min(width, inside + piece.right_rows);
  for (std::int64_t j = 0; j < count; ++j) {
    taps[static_cast<std::size_t>(j)] =
        j < inside ? dpre.rows + (row + j) * dpre.stride
                   : dpre.halo + (piece.right_begin + j - inside) * dpre.halo_stride;
  }
  return count;
}

/// The weights of a block of channels by tap, that of the row itself first, and the bias.
struct BlockWeights {
  std::array<std::array<float, kChannels>, kMaxConvWidth> taps;
  std::array<float, kChannels> bias;

  /// `bias_data` may be null: zeros.
  BlockWeights(const float* weight, const float* bias_data, std::int64_t begin, std::int64_t end,
               std::int64_t width) {
    for (std::int64_t c = begin; c < end; ++c) {
      const auto i = static_cast<std::size_t>(c - begin);
      for (std::int64_t j = 0; j < width; ++j)
        taps[static_cast<std::size_t>(j)][i] = weight[c * width + width - 1 - j];
      bias[i] = bias_data == nullptr ? 0.0f : bias_data[c];
    }
  }
};

/// store(i, bias + sum over taps), oldest (or last) tap first, of `count` channels from `begin`.
template <class T, class Store, std::size_t... kTap>
void sums_of(const TapRows<T>& rows, const BlockWeights& weights, std::int64_t begin,
             std::int64_t count, const Store& store, std::index_sequence<kTap...>) {
  constexpr std::size_t kLast = sizeof...(kTap) - 1;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    float sum = weights.bias[at];
    ((sum = std::fma(weights.taps[kLast - kTap][at],
                     static_cast<float>(rows[kLast - kTap][begin + i]), sum)),
     ...);
    store(i, sum);
  }
}
template <class T, class Store>
void sums(const TapRows<T>& rows, std::int64_t taps, const BlockWeights& weights,
          std::int64_t begin, std::int64_t count, const Store& store) {
  const auto of = [&](auto number) { sums_of(rows, weights, begin, count, store, number); };
  switch (taps) {
    case 1:
      return of(std::make_index_sequence<1>());
    case 2:
      return of(std::make_index_sequence<2>());
    case 3:
      return of(std::make_index_sequence<3>());
    case 4:
      return of(std::make_index_sequence<4>());
    default:
      return of(std::make_index_sequence<kMaxConvWidth>());
  }
}

/// visit(piece, row) for rows [begin, end).
template <class Visit>
void for_rows(const ConvRows& rows, std::int64_t begin, std::int64_t end, const Visit& visit) {
  auto piece = std::ranges::upper_bound(rows.pieces, begin, {}, &ConvPiece::row_end);
  for (std::int64_t row = begin; row < end; ++piece) {
    for (; row < std::min(end, piece->row_end); ++row) visit(*piece, row);
  }
}

/// visit(weights, piece, row, begin, count) for every row and block of channels, on all threads.
template <class Visit>
void for_blocks(const ConvRows& rows, const ConstTensorView& weight, const ConstTensorView& bias,
                const Visit& visit) {
  const std::int64_t channels = weight.size(0);
  const std::int64_t row_blocks = blocks(rows.rows, kRows),
                     channel_blocks = blocks(channels, kChannels);
#pragma omp parallel for collapse(2) schedule(static) if (rows.rows * channels >= kParallelElements)
  for (std::int64_t row_block = 0; row_block < row_blocks; ++row_block) {
    for (std::int64_t channel_block = 0; channel_block < channel_blocks; ++channel_block) {
      const std::int64_t begin = channel_block * kChannels,
                         end = std::min(channels, begin + kChannels);
      const BlockWeights weights(weight.as<float>(),
                                 bias.data() == nullptr ? nullptr : bias.as<float>(), begin, end,
                                 rows.width);
      for_rows(rows, row_block * kRows, std::min(rows.rows, (row_block + 1) * kRows),
               [&](const ConvPiece& piece, std::int64_t row) {
                 visit(weights, piece, row, begin, end - begin);
               });
    }
  }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + runtime::ops::detail::exponential(-x)); }

template <class T>
void forward(const ConvRows& rows, const ShortConvInputs& inputs, const TensorView& y) {
  const Source<T> x(inputs.x, inputs.left);
  for_blocks(rows, inputs.weight, inputs.bias,
             [&](const BlockWeights& weights, const ConvPiece& piece, std::int64_t row,
                 std::int64_t begin, std::int64_t count) {
               TapRows<T> taps{};
               const std::int64_t seen = rows_before(x, piece, row, rows.width, taps);
               T* out = y.as<T>() + row * y.stride(0) + begin;
               sums(taps, seen, weights, begin, count,
                    [out](std::int64_t i, float pre) { out[i] = T(pre * sigmoid(pre)); });
             });
}

template <class T>
void backward_to_pre(const ConvRows& rows, const ShortConvInputs& inputs, const ConstTensorView& dy,
                     const TensorView& dpre) {
  const Source<T> x(inputs.x, inputs.left);
  for_blocks(rows, inputs.weight, inputs.bias,
             [&](const BlockWeights& weights, const ConvPiece& piece, std::int64_t row,
                 std::int64_t begin, std::int64_t count) {
               TapRows<T> taps{};
               const std::int64_t seen = rows_before(x, piece, row, rows.width, taps);
               const T* slope = dy.as<T>() + row * dy.stride(0) + begin;
               T* out = dpre.as<T>() + row * dpre.stride(0) + begin;
               sums(taps, seen, weights, begin, count, [slope, out](std::int64_t i, float pre) {
                 const float s = sigmoid(pre);
                 out[i] = T(static_cast<float>(slope[i]) * s * (1.0f + pre * (1.0f - s)));
               });
             });
}

template <class T>
void backward_to_x(const ConvRows& rows, const ConstTensorView& weight, const ConstTensorView& dpre,
                   const ConstTensorView& right, const TensorView& dx) {
  const Source<T> gradient(dpre, right);
  for_blocks(rows, weight, {},
             [&](const BlockWeights& weights, const ConvPiece& piece, std::int64_t row,
                 std::int64_t begin, std::int64_t count) {
               TapRows<T> taps{};
               const std::int64_t seen = rows_behind(gradient, piece, row, rows.width, taps);
               T* out = dx.as<T>() + row * dx.stride(0) + begin;
               sums(taps, seen, weights, begin, count,
                    [out](std::int64_t i, float sum) { out[i] = T(sum); });
             });
}

/// dweight and dbias of channels [begin, end), summed by one thread: all rows in order.
template <class T>
void backward_to_weights(const ConvRows& rows, const Source<T>& x, const ConstTensorView& dpre,
                         const ShortConvGradients& gradients, std::int64_t begin,
                         std::int64_t end) {
  std::array<std::array<double, kChannels>, kMaxConvWidth> products{};
  std::array<double, kChannels> slopes{};
  const std::int64_t count = end - begin;
  for_rows(rows, 0, rows.rows, [&](const ConvPiece& piece, std::int64_t row) {
    TapRows<T> taps{};
    const auto seen = static_cast<std::size_t>(rows_before(x, piece, row, rows.width, taps));
    const T* slope = dpre.as<T>() + row * dpre.stride(0) + begin;
    for (std::size_t j = 0; j < seen; ++j) {
      const T* value = taps[j] + begin;
      double* into = products[j].data();
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        into[i] += static_cast<double>(static_cast<float>(slope[i])) *
                   static_cast<double>(static_cast<float>(value[i]));
      }
    }
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i)
      slopes[static_cast<std::size_t>(i)] += static_cast<double>(static_cast<float>(slope[i]));
  });
  float* dweight = gradients.dweight.as<float>();
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t j = 0; j < rows.width; ++j) {
      dweight[(begin + i) * rows.width + rows.width - 1 - j] +=
          static_cast<float>(products[static_cast<std::size_t>(j)][static_cast<std::size_t>(i)]);
    }
  }
  if (gradients.dbias.data() == nullptr) return;
  float* dbias = gradients.dbias.as<float>();
  for (std::int64_t i = 0; i < count; ++i)
    dbias[begin + i] += static_cast<float>(slopes[static_cast<std::size_t>(i)]);
}

template <class T>
void backward(const ConvRows& rows, const ShortConvInputs& inputs, const ConstTensorView& dpre,
              const ConstTensorView& right, const ShortConvGradients& gradients) {
  backward_to_x<T>(rows, inputs.weight, dpre, right, gradients.dx);
  const Source<T> x(inputs.x, inputs.left);
  const std::int64_t channels = inputs.x.size(1);
#pragma omp parallel for schedule(static) if (rows.rows * channels >= kParallelElements)
  for (std::int64_t begin = 0; begin < channels; begin += kChannels) {
    backward_to_weights(rows, x, dpre, gradients, begin, std::min(channels, begin + kChannels));
  }
}

}  // namespace

void run_forward(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                 TensorView y, const Stream& stream) {
  const auto run = inputs.x.dtype() == DType::bfloat16 ? forward<BFloat16> : forward<float>;
  stream.cpu_task([=] { run(*rows, inputs, y); });
}

void run_dpre(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
              ConstTensorView dy, TensorView dpre, const Stream& stream) {
  const auto run =
      inputs.x.dtype() == DType::bfloat16 ? backward_to_pre<BFloat16> : backward_to_pre<float>;
  stream.cpu_task([=] { run(*rows, inputs, dy, dpre); });
}

void run_backward(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                  ConstTensorView dpre, ConstTensorView right, const ShortConvGradients& gradients,
                  const Stream& stream) {
  const auto run = inputs.x.dtype() == DType::bfloat16 ? backward<BFloat16> : backward<float>;
  stream.cpu_task([=] { run(*rows, inputs, dpre, right, gradients); });
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention::detail {

HWY_EXPORT(run_forward);
HWY_EXPORT(run_dpre);
HWY_EXPORT(run_backward);

void cpu_short_conv(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                    runtime::TensorView y, const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_forward)(rows, inputs, y, stream);
}

void cpu_short_conv_dpre(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                         runtime::ConstTensorView dy, runtime::TensorView dpre,
                         const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_dpre)(rows, inputs, dy, dpre, stream);
}

void cpu_short_conv_backward(const std::shared_ptr<const ConvRows>& rows,
                             const ShortConvInputs& inputs, runtime::ConstTensorView dpre,
                             runtime::ConstTensorView right, const ShortConvGradients& gradients,
                             const runtime::Stream& stream) {
  LONGHAUL_DISPATCH(run_backward)(rows, inputs, dpre, right, gradients, stream);
}

}  // namespace longhaul::attention::detail
#endif  // HWY_ONCE

// What goes element by element on CUDA: rotation, activations, scaled sums, casts.

#include <algorithm>

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// Of so many columns of a table as a kernel takes for parameters.
struct Frequencies {
  static constexpr std::int64_t kMost = 256;
  double of[kMost];
};

/// Columns [0, columns) of rows that lie `half` apart. A thread keeps its column.
template <class Position>
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const Position* positions, const __grid_constant__ Frequencies frequencies,
                      double factor, float* cosines, float* sines, std::int64_t rows,
                      std::int64_t columns, std::int64_t half) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x / columns;
  if (thread >= row_step * columns) return;
  const std::int64_t i = thread % columns;
  const double frequency = frequencies.of[i];
  for (std::int64_t row = thread / columns; row < rows; row += row_step) {
    const double angle = static_cast<double>(positions[row]) * frequency;
    cosines[row * half + i] = static_cast<float>(factor * cos(angle));
    sines[row * half + i] = static_cast<float>(factor * sin(angle));
  }
}

/// A block takes a row at a time. Rows lie x_step and y_step elements apart; y may be x.
template <int N, class From, class To>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const From* x, std::int64_t x_step, const float* cosines, const float* sines,
                float sign, To* y, std::int64_t y_step, std::int64_t rows, int heads, int half,
                int dim) {
  const int turned_parts = half / N, parts = dim / N - turned_parts;  // of a head
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int item = static_cast<int>(threadIdx.x); item < heads * parts;
         item += static_cast<int>(blockDim.x)) {
      const bool turns = item % parts < turned_parts;
      const int i = (item % parts + (turns ? 0 : turned_parts)) * N, at = item / parts * dim + i;
      const From* from = x + row * x_step + at;
      To* to = y + row * y_step + at;
      float first[N], second[N], cosine[N], sine[N];
      load(from, first);
      if (!turns) {
        store(first, to);
        continue;
      }
      load(from + half, second);
      load(cosines + row * half + i, cosine);
      load(sines + row * half + i, sine);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const Pair pair = turned({first[j], second[j]}, cosine[j], sign * sine[j]);
        first[j] = pair.first;
        second[j] = pair.second;
      }
      store(first, to);
      store(second, to + half);
    }
  }
}

/// A block takes a row at a time.
template <int N, class Gate, class T>
__global__ void __launch_bounds__(kThreads)
    glu_kernel(const T* gate_up, T* y, std::int64_t rows, std::int64_t f) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* of_row = gate_up + row * 2 * f;
    for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < f;
         i += static_cast<std::int64_t>(blockDim.x) * N) {
      float gates[N], ups[N];
      load(of_row + i, gates);
      load(of_row + f + i, ups);
#pragma unroll
      for (int j = 0; j < N; ++j) ups[j] = gated(gates[j], ups[j], expf(-Gate::argument(gates[j])));
      store(ups, y + row * f + i);
    }
  }
}

/// The same. A thread reads all that it overwrites.
template <int N, class Gate, class T>
__global__ void __launch_bounds__(kThreads)
    glu_backward_kernel(T* gate_up, T* dy, std::int64_t rows, std::int64_t f) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* of_row = gate_up + row * 2 * f;
    for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < f;
         i += static_cast<std::int64_t>(blockDim.x) * N) {
      float gates[N], ups[N], slopes[N];
      load(of_row + i, gates);
      load(of_row + f + i, ups);
      load(dy + row * f + i, slopes);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float e = expf(-Gate::argument(gates[j])), value = gated(gates[j], ups[j], e);
        const Pair gradients = gated_gradients<Gate>(gates[j], ups[j], e, slopes[j]);
        gates[j] = gradients.first;
        ups[j] = gradients.second;
        slopes[j] = value;
      }
      store(gates, of_row + i);
      store(ups, of_row + f + i);
      store(slopes, dy + row * f + i);
    }
  }
}

/// y = x * sigmoid(gate) of each element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_gate_kernel(const T* x, const T* gate, T* y, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()], gates[count()];
    load(x + i, values);
    load(gate + i, gates);
#pragma unroll
    for (int j = 0; j < count(); ++j) values[j] *= sigmoid_of(expf(-gates[j]));
    store(values, y + i);
  });
}

/// gate <- its gradient, dy <- that of x.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_gate_backward_kernel(const T* x, T* gate, T* dy, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()], gates[count()], slopes[count()];
    load(x + i, values);
    load(gate + i, gates);
    load(dy + i, slopes);
#pragma unroll
    for (int j = 0; j < count(); ++j) {
      const Pair gradients = sigmoid_gate_gradients(values[j], expf(-gates[j]), slopes[j]);
      slopes[j] = gradients.first;
      gates[j] = gradients.second;
    }
    store(gates, gate + i);
    store(slopes, dy + i);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    squared_relu_kernel(const T* x, T* y, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()];
    load(x + i, values);
#pragma unroll
    for (int j = 0; j < count(); ++j) values[j] = relu_squared(values[j]);
    store(values, y + i);
  });
}

/// x <- its gradient, dy <- the output again.
template <class T>
__global__ void __launch_bounds__(kThreads)
    squared_relu_backward_kernel(T* x, T* dy, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()], slopes[count()];
    load(x + i, values);
    load(dy + i, slopes);
#pragma unroll
    for (int j = 0; j < count(); ++j) {
      const float value = values[j];
      values[j] = relu_squared_gradient(value, slopes[j]);
      slopes[j] = relu_squared(value);
    }
    store(values, x + i);
    store(slopes, dy + i);
  });
}

/// x <- cap tanh(x / cap).
__global__ void __launch_bounds__(kThreads)
    softcap_kernel(float* x, float cap, float inverse, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()];
    load(x + i, values);
#pragma unroll
    for (int j = 0; j < count(); ++j) values[j] = cap * tanhf(values[j] * inverse);
    store(values, x + i);
  });
}

/// y = factor x, or y + factor x.
template <bool kAdd, class From, class To>
__global__ void __launch_bounds__(kThreads)
    scaled_kernel(const From* x, float factor, To* y, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()], sums[count()] = {};
    load(x + i, values);
    if constexpr (kAdd) load(y + i, sums);
#pragma unroll
    for (int j = 0; j < count(); ++j)
      values[j] = kAdd ? sums[j] + factor * values[j] : factor * values[j];
    store(values, y + i);
  });
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(const From* from, To* to, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float values[count()];
    load(from + i, values);
    store(values, to + i);
  });
}

}  // namespace

void cuda_rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                     TensorView cosines, TensorView sines, const Stream& stream) {
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  if (rows * half == 0) return;
  static_assert(Frequencies::kMost <= kThreads, "a block has a thread a column");
  const auto run = [&](const auto* at) {
    using Position = std::remove_cvref_t<decltype(*at)>;
    for (std::int64_t first = 0; first < half; first += Frequencies::kMost) {
      const std::int64_t columns = std::min(half - first, Frequencies::kMost);
      Frequencies own{};
      std::ranges::copy(
          frequencies.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(columns)),
          own.of);
      launch(rope_table_kernel<Position>, blocks_for(rows * columns, kThreads), kThreads, stream,
             at, own, factor, cosines.as<float>() + first, sines.as<float>() + first, rows, columns,
             half);
    }
  };
  if (positions.dtype() == DType::int32) return run(positions.as<std::int32_t>());
  run(positions.as<std::int64_t>());
}

void cuda_rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
               TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2), half = cosines.size(1);
  const std::int64_t x_step = x.stride(0), y_step = y.stride(0);
  if (x.elements() == 0) return;
  const float sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  const bool packed = aligned_rows(half, x.data(), y.data(), cosines.data(), sines.data()) &&
                      dim % kPack == 0 && x_step % kPack == 0 && y_step % kPack == 0;
  with_activation("rope", x.dtype(), [&]<class From>() {
    with_activation("rope", y.dtype(), [&]<class To>() {
      with_count(packed, [&](auto count) {
        launch(rope_kernel<count(), From, To>, blocks_for(rows, 1),
               threads_for(heads * (dim - half) / count()), stream, x.as<From>(), x_step,
               cosines.as<float>(), sines.as<float>(), sign, y.as<To>(), y_step, rows,
               static_cast<int>(heads), static_cast<int>(half), static_cast<int>(dim));
      });
    });
  });
}

void cuda_glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream) {
  const std::int64_t rows = y.size(0), f = y.size(1);
  if (y.elements() == 0) return;
  with_gate(kind, [&]<class Gate>() {
    with_activation("glu", y.dtype(), [&]<class T>() {
      with_count(aligned_rows(f, gate_up.data(), y.data()), [&](auto count) {
        launch(glu_kernel<count(), Gate, T>, blocks_for(rows, 1), threads_for(f / count()), stream,
               gate_up.as<T>(), y.as<T>(), rows, f);
      });
    });
  });
}

void cuda_glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream) {
  const std::int64_t rows = dy.size(0), f = dy.size(1);
  if (dy.elements() == 0) return;
  with_gate(kind, [&]<class Gate>() {
    with_activation("glu_backward", dy.dtype(), [&]<class T>() {
      with_count(aligned_rows(f, gate_up.data(), dy.data()), [&](auto count) {
        launch(glu_backward_kernel<count(), Gate, T>, blocks_for(rows, 1), threads_for(f / count()),
               stream, gate_up.as<T>(), dy.as<T>(), rows, f);
      });
    });
  });
}

void cuda_sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y,
                       const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data(), gate.data(), y.data());
  with_activation("sigmoid_gate", x.dtype(), [&]<class T>() {
    launch(sigmoid_gate_kernel<T>, blocks_for_packs(n, packed), kThreads, stream, x.as<T>(),
           gate.as<T>(), y.as<T>(), n, packed);
  });
}

void cuda_sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy,
                                const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data(), gate.data(), dy.data());
  with_activation("sigmoid_gate_backward", x.dtype(), [&]<class T>() {
    launch(sigmoid_gate_backward_kernel<T>, blocks_for_packs(n, packed), kThreads, stream,
           x.as<T>(), gate.as<T>(), dy.as<T>(), n, packed);
  });
}

void cuda_squared_relu(ConstTensorView x, TensorView y, const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data(), y.data());
  with_activation("squared_relu", x.dtype(), [&]<class T>() {
    launch(squared_relu_kernel<T>, blocks_for_packs(n, packed), kThreads, stream, x.as<T>(),
           y.as<T>(), n, packed);
  });
}

void cuda_squared_relu_backward(TensorView x, TensorView dy, const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data(), dy.data());
  with_activation("squared_relu_backward", x.dtype(), [&]<class T>() {
    launch(squared_relu_backward_kernel<T>, blocks_for_packs(n, packed), kThreads, stream,
           x.as<T>(), dy.as<T>(), n, packed);
  });
}

void cuda_softcap(TensorView x, double cap, const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data());
  launch(softcap_kernel, blocks_for_packs(n, packed), kThreads, stream, x.as<float>(),
         static_cast<float>(cap), static_cast<float>(1 / cap), n, packed);
}

void cuda_scaled(ConstTensorView x, double factor, Write write, TensorView y,
                 const Stream& stream) {
  const std::int64_t n = x.elements();
  if (n == 0) return;
  const bool packed = aligned(x.data(), y.data());
  with_activation("scaled", x.dtype(), [&]<class From>() {
    with_activation("scaled", y.dtype(), [&]<class To>() {
      launch(write == Write::add ? scaled_kernel<true, From, To> : scaled_kernel<false, From, To>,
             blocks_for_packs(n, packed), kThreads, stream, x.as<From>(),
             static_cast<float>(factor), y.as<To>(), n, packed);
    });
  });
}

void cuda_cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  const std::int64_t n = src.elements();
  if (n == 0) return;
  const bool packed = aligned(src.data(), dst.data());
  with_activation("cast", src.dtype(), [&]<class From>() {
    with_activation("cast", dst.dtype(), [&]<class To>() {
      launch(cast_kernel<From, To>, blocks_for_packs(n, packed), kThreads, stream, src.as<From>(),
             dst.as<To>(), n, packed);
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

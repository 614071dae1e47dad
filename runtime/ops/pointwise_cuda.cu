// What goes element by element on CUDA: rotation, the gated activation, additions, casts.

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// A thread keeps its column, so that its frequency is computed once.
template <class Position>
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const Position* positions, double theta, float* cosines, float* sines,
                      std::int64_t rows, std::int64_t half) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x / half;
  if (thread >= row_step * half) return;
  const std::int64_t i = thread % half;
  const double frequency = pow(theta, -static_cast<double>(i) / static_cast<double>(half));
  for (std::int64_t row = thread / half; row < rows; row += row_step) {
    const double angle = static_cast<double>(positions[row]) * frequency;
    cosines[row * half + i] = static_cast<float>(cos(angle));
    sines[row * half + i] = static_cast<float>(sin(angle));
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(T* x, const float* cosines, const float* sines, float sign, std::int64_t rows,
                int heads, int half) {
  const int parts = half / N;  // of a head
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* of_row = x + row * heads * 2 * half;
    for (int item = static_cast<int>(threadIdx.x); item < heads * parts;
         item += static_cast<int>(blockDim.x)) {
      const int head = item / parts, i = item % parts * N;
      T* at = of_row + head * 2 * half + i;
      float first[N], second[N], cosine[N], sine[N];
      load(at, first);
      load(at + half, second);
      load(cosines + row * half + i, cosine);
      load(sines + row * half + i, sine);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const Pair pair = turned({first[j], second[j]}, cosine[j], sign * sine[j]);
        first[j] = pair.first;
        second[j] = pair.second;
      }
      store(first, at);
      store(second, at + half);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const T* gate, const T* up, T* y, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float gates[count()], ups[count()];
    load(gate + i, gates);
    load(up + i, ups);
#pragma unroll
    for (int j = 0; j < count(); ++j) ups[j] = gated(gates[j], ups[j], expf(-gates[j]));
    store(ups, y + i);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const T* gate, const T* up, const T* dy, T* dgate, T* dup,
                           std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float gates[count()], ups[count()], slopes[count()];
    load(gate + i, gates);
    load(up + i, ups);
    load(dy + i, slopes);
#pragma unroll
    for (int j = 0; j < count(); ++j) {
      const Pair gradients = gated_gradients(gates[j], ups[j], expf(-gates[j]), slopes[j]);
      gates[j] = gradients.first;
      ups[j] = gradients.second;
    }
    store(gates, dgate + i);
    store(ups, dup + i);
  });
}

template <class A, class B, class Sum>
__global__ void __launch_bounds__(kThreads)
    add_kernel(const A* a, const B* b, Sum* sum, std::int64_t n, bool packed) {
  for_each_pack(n, packed, [&](std::int64_t i, auto count) {
    float left[count()], right[count()];
    load(a + i, left);
    load(b + i, right);
#pragma unroll
    for (int j = 0; j < count(); ++j) left[j] += right[j];
    store(left, sum + i);
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

void cuda_rope_table(ConstTensorView positions, double theta, TensorView cosines, TensorView sines,
                     const Stream& stream) {
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  if (rows * half == 0) return;
  const auto run = [&](const auto* at) {
    using Position = std::remove_cvref_t<decltype(*at)>;
    // At least a thread a column.
    const std::int64_t blocks =
        std::max(blocks_for(rows * half, kThreads), (half + kThreads - 1) / kThreads);
    launch(rope_table_kernel<Position>, blocks, kThreads, stream, at, theta, cosines.as<float>(),
           sines.as<float>(), rows, half);
  };
  if (positions.dtype() == DType::int32) return run(positions.as<std::int32_t>());
  run(positions.as<std::int64_t>());
}

void cuda_rope(TensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
               const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), half = x.size(2) / 2;
  if (x.elements() == 0) return;
  const float sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  with_activation("rope", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(half, x.data(), cosines.data(), sines.data()), [&](auto count) {
      launch(rope_kernel<count(), T>, blocks_for(rows, 1), threads_for(heads * half / count()),
             stream, x.as<T>(), cosines.as<float>(), sines.as<float>(), sign, rows,
             static_cast<int>(heads), static_cast<int>(half));
    });
  });
}

void cuda_swiglu(ConstTensorView gate, ConstTensorView up, TensorView y, const Stream& stream) {
  const std::int64_t n = gate.elements();
  if (n == 0) return;
  const bool packed = aligned(gate.data(), up.data(), y.data());
  with_activation("swiglu", gate.dtype(), [&]<class T>() {
    launch(swiglu_kernel<T>, blocks_for_packs(n, packed), kThreads, stream, gate.as<T>(),
           up.as<T>(), y.as<T>(), n, packed);
  });
}

void cuda_swiglu_backward(ConstTensorView gate, ConstTensorView up, ConstTensorView dy,
                          TensorView dgate, TensorView dup, const Stream& stream) {
  const std::int64_t n = gate.elements();
  if (n == 0) return;
  const bool packed = aligned(gate.data(), up.data(), dy.data(), dgate.data(), dup.data());
  with_activation("swiglu_backward", gate.dtype(), [&]<class T>() {
    launch(swiglu_backward_kernel<T>, blocks_for_packs(n, packed), kThreads, stream, gate.as<T>(),
           up.as<T>(), dy.as<T>(), dgate.as<T>(), dup.as<T>(), n, packed);
  });
}

void cuda_add(ConstTensorView a, ConstTensorView b, TensorView sum, const Stream& stream) {
  const std::int64_t n = a.elements();
  if (n == 0) return;
  const bool packed = aligned(a.data(), b.data(), sum.data());
  with_activation("add", a.dtype(), [&]<class A>() {
    with_activation("add", b.dtype(), [&]<class B>() {
      with_activation("add", sum.dtype(), [&]<class Sum>() {
        launch(add_kernel<A, B, Sum>, blocks_for_packs(n, packed), kThreads, stream, a.as<A>(),
               b.as<B>(), sum.as<Sum>(), n, packed);
      });
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

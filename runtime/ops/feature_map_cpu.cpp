#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

/// Calls body.template operator()<map>().
template <class Body>
void with_map(FeatureMap map, const Body& body) {
  switch (map) {
    case FeatureMap::identity:
      return body.template operator()<FeatureMap::identity>();
    case FeatureMap::relu:
      return body.template operator()<FeatureMap::relu>();
    case FeatureMap::silu:
      return body.template operator()<FeatureMap::silu>();
    case FeatureMap::elu1:
      return body.template operator()<FeatureMap::elu1>();
  }
}

template <FeatureMap map>
Slope mapped(float x) {
  if constexpr (map == FeatureMap::identity) return {x, 1.0f};
  if constexpr (map == FeatureMap::relu)
    return x < 0 ? Slope{0.0f, 0.0f} : Slope{x, x > 0 ? 1.0f : 0.0f};
  if constexpr (map == FeatureMap::silu) return silu_slope(x, exponential(-x));
  if constexpr (map == FeatureMap::elu1) return elu1_slope(x, exponential(x));
}

}  // namespace

void cpu_feature_map(FeatureMap map, ConstTensorView x, TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("feature_map", x.dtype(), [&]<class T>() {
    with_map(map, [&]<FeatureMap of>() {
      stream.cpu_task([=, from = heads_of<T>(x), to = heads_of<T>(y)] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          for (std::int64_t head = 0; head < heads; ++head) {
            const T* in = from.of(row, head);
            T* out = to.of(row, head);
#pragma omp simd
            for (std::int64_t i = 0; i < dim; ++i) put(out[i], mapped<of>(to_float(in[i])).value);
          }
        }
      });
    });
  });
}

void cpu_feature_map_backward(FeatureMap map, ConstTensorView x, ConstTensorView dy, TensorView dx,
                              const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("feature_map_backward", x.dtype(), [&]<class T>() {
    with_map(map, [&]<FeatureMap of>() {
      stream.cpu_task(
          [=, from = heads_of<T>(x), slopes = heads_of<float>(dy), to = heads_of<T>(dx)] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
            for (std::int64_t row = 0; row < rows; ++row) {
              for (std::int64_t head = 0; head < heads; ++head) {
                const T* in = from.of(row, head);
                const float* slope = slopes.of(row, head);
                T* out = to.of(row, head);
#pragma omp simd
                for (std::int64_t i = 0; i < dim; ++i)
                  put(out[i], slope[i] * mapped<of>(to_float(in[i])).slope);
              }
            }
          });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

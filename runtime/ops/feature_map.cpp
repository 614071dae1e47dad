#include "runtime/ops/feature_map.h"

#include <array>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"
#include "runtime/require_cpu.h"

namespace longhaul::runtime::ops {
namespace {

constexpr std::array<const char*, 4> kNames = {"identity", "relu", "silu", "elu1"};

}  // namespace

std::span<const char* const> feature_map_names() { return kNames; }

FeatureMap feature_map_of(const std::string& name) {
  std::string all;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<FeatureMap>(i);
    all += concat(all.empty() ? "" : ", ", kNames[i]);
  }
  fail(ExitCode::config, "there is no feature map '", name, "'; take one of ", all);
}

void feature_map(FeatureMap map, ConstTensorView x, TensorView y, const Stream& stream) {
  detail::require_like_heads("feature_map", x, "y", y);
  require_cpu("feature_map", stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_feature_map(map, x, y, stream);
}

void feature_map_backward(FeatureMap map, ConstTensorView x, ConstTensorView dy, TensorView dx,
                          const Stream& stream) {
  detail::require_like_heads("feature_map_backward", x, "dx", dx);
  detail::require_heads("feature_map_backward", "dy", dy, {x.size(0), x.size(1), x.size(2)});
  detail::require_dtype("feature_map_backward", "dy", dy, {DType::float32});
  require_cpu("feature_map_backward", stream);
  detail::count_bytes(stream, {x, dy, dx});
  detail::cpu_feature_map_backward(map, x, dy, dx, stream);
}

}  // namespace longhaul::runtime::ops

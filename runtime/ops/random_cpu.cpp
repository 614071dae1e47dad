#include "runtime/ops/checks.h"
#include "runtime/ops/normals_impl.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
void cpu_fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                     std::int64_t first_element, const Stream& stream) {
  with_activation("fill_normal", values.dtype(), [&]<class T>() {
    stream.cpu_task([=, out = values.as<T>(), n = values.elements()] {
      const std::int64_t first_block = first_element / 4, last_block = (first_element + n + 3) / 4;
#pragma omp parallel for if (n >= kParallelElements)
      for (std::int64_t block = first_block; block < last_block; ++block) {
        const Four drawn = normals(key, static_cast<std::uint64_t>(block));
        for (int lane = 0; lane < 4; ++lane) {
          const std::int64_t at = block * 4 + lane - first_element;
          if (at < 0 || at >= n) continue;
          put(out[at], static_cast<float>(mean + stddev * drawn.at[lane]));
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail

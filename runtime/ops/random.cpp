#include "runtime/ops/random.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/normals_impl.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                 std::int64_t first_element, const Stream& stream) {
  LONGHAUL_CHECK(values.contiguous(), "fill_normal takes a contiguous view");
  LONGHAUL_CHECK(first_element >= 0, "fill_normal: first element is ", first_element,
                 "; expected at least 0");
  if (detail::on_cuda(stream))
    return detail::cuda_fill_normal(values, mean, stddev, key, first_element, stream);
  detail::cpu_fill_normal(values, mean, stddev, key, first_element, stream);
}

std::vector<double> uniforms(std::int64_t count, RandomKey key) {
  std::vector<double> numbers;
  for (std::int64_t i = 0; i < count; ++i)
    numbers.push_back(detail::uniforms_of_block(key, static_cast<std::uint64_t>(i / 4)).at[i % 4]);
  return numbers;
}

}  // namespace longhaul::runtime::ops

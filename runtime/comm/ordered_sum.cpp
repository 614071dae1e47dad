#include "runtime/comm/ordered_sum.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::runtime::detail {
namespace {

constexpr std::int64_t kBlock = 2048;  // stays in the first-level cache while all terms are added

template <class T>
void sum(std::span<const std::byte* const> terms, std::byte* out, std::int64_t elements) {
  T* to = reinterpret_cast<T*>(out);
  const std::int64_t blocks = (elements + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (blocks > 8)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kBlock;
    const std::int64_t n = std::min(kBlock, elements - begin);
    T total[kBlock];
    const T* first = reinterpret_cast<const T*>(terms[0]) + begin;
    for (std::int64_t i = 0; i < n; ++i) total[i] = first[i];
    for (const std::byte* term : terms.subspan(1)) {
      const T* from = reinterpret_cast<const T*>(term) + begin;
      for (std::int64_t i = 0; i < n; ++i) total[i] += from[i];
    }
    for (std::int64_t i = 0; i < n; ++i) to[begin + i] = total[i];
  }
}

}  // namespace

void ordered_sum(std::span<const std::byte* const> terms, std::byte* out, std::int64_t elements,
                 DType dtype) {
  switch (dtype) {
    case DType::float32:
      return sum<float>(terms, out, elements);
    case DType::float64:
      return sum<double>(terms, out, elements);
    default:
      fail(ExitCode::internal, "sums over ranks are float32 or float64, not ", name(dtype));
  }
}

}  // namespace longhaul::runtime::detail

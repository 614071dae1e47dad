#pragma once
// Counter-based random numbers: element i of stream s under seed k is a pure function of (k, s, i),
// so neither the number of ranks or threads nor the order of calls changes a value.

#include <vector>

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

struct RandomKey {
  std::uint64_t seed = 0;
  /// One per independent sequence, e.g. a digest of the parameter's name.
  std::uint64_t stream_id = 0;
};

/// values[i] = mean + stddev * n(first_element + i), n standard normal. values fp32 or bfloat16,
/// contiguous. Source: Salmon et al. 2011 (Philox 4x32-10), Box-Muller.
void fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                 std::int64_t first_element, const Stream& stream);

/// `count` numbers uniform in (0, 1), the midpoints of 2^32 equal intervals, from the same
/// counters: for the few values of a model that are not normal, computed on the host.
std::vector<double> uniforms(std::int64_t count, RandomKey key);

}  // namespace longhaul::runtime::ops

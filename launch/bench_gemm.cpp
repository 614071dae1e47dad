#include "launch/bench_gemm.h"

#include "runtime/ops/matmul.h"
#include "runtime/ops/random.h"
#include "runtime/tensor.h"

namespace longhaul::launch {

using runtime::Tensor;

double GemmRate::flops() const {
  const auto n = static_cast<double>(size);
  return 2 * n * n * n;
}
double GemmRate::flops_per_second() const { return flops() / seconds.median; }

GemmRate measure_gemm(runtime::DType dtype, const Repeats& repeats, const runtime::Stream& stream) {
  GemmRate rate;
  rate.size = stream.device().kind == runtime::DeviceKind::cuda ? 8192 : 1024;
  const auto square = [&] { return Tensor({rate.size, rate.size}, dtype, stream); };
  const Tensor a = square(), b = square(), c = square();
  runtime::ops::fill_normal(a, 0, 1, {1, 1}, 0, stream);
  runtime::ops::fill_normal(b, 0, 1, {1, 2}, 0, stream);
  rate.seconds = time_on_stream(stream, repeats, [&] {
    runtime::ops::matmul(a, b, c, runtime::ops::Write::overwrite, stream);
  });
  return rate;
}

}  // namespace longhaul::launch

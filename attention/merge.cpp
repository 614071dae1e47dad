#include "attention/merge.h"

#include <limits>

#include "attention/block_impl.h"

namespace longhaul::attention::detail {
namespace {

using runtime::BFloat16;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;

template <class T>
const T* row_of(const ConstTensorView& view, std::int64_t row, std::int64_t head) {
  return view.as<T>() + row * view.stride(0) + head * view.stride(1);
}

template <class Out, class Dout>
void delta_rows(const ConstTensorView& out, const ConstTensorView& dout, const TensorView& delta) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < out.size(0); ++row) {
    for (std::int64_t head = 0; head < out.size(1); ++head) {
      const Out* a = row_of<Out>(out, row, head);
      const Dout* b = row_of<Dout>(dout, row, head);
      // One chain in the order of the kernels' product dout v: a row that sees a single key gets
      // dout v - delta = 0 exactly, as it should.
      float sum = 0;
      for (std::int64_t d = 0; d < out.size(2); ++d) {
        sum = std::fma(static_cast<float>(b[d]), static_cast<float>(a[d]), sum);
      }
      delta.as<float>()[row * delta.stride(0) + head * delta.stride(1)] = sum;
    }
  }
}

}  // namespace

void cpu_block_delta(ConstTensorView out, ConstTensorView dout, TensorView delta,
                     const Stream& stream) {
  const bool out_bf16 = out.dtype() == DType::bfloat16, dout_bf16 = dout.dtype() == DType::bfloat16;
  const auto run = out_bf16
                       ? (dout_bf16 ? delta_rows<BFloat16, BFloat16> : delta_rows<BFloat16, float>)
                       : (dout_bf16 ? delta_rows<float, BFloat16> : delta_rows<float, float>);
  stream.cpu_task([=] { run(out, dout, delta); });
}

void cpu_merge(ConstTensorView src_out, ConstTensorView src_lse, TensorView dst_out,
               TensorView dst_lse, const Stream& stream) {
  stream.cpu_task([=] {
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < dst_out.size(0); ++row) {
      for (std::int64_t head = 0; head < dst_out.size(1); ++head) {
        const float* src = row_of<float>(src_out, row, head);
        float* dst = dst_out.as<float>() + row * dst_out.stride(0) + head * dst_out.stride(1);
        float* lse = dst_lse.as<float>() + row * dst_lse.stride(0) + head * dst_lse.stride(1);
        const MergeWeights weights =
            merge_weights(Lse::load(lse), Lse::load(row_of<float>(src_lse, row, head)));
        weights.lse.store(lse);
        const std::int64_t dim = dst_out.size(2);
        if (weights.b == 0) continue;
        if (weights.a == 0) {
          for (std::int64_t d = 0; d < dim; ++d) dst[d] = weights.of(0, src[d]);
        } else {
          for (std::int64_t d = 0; d < dim; ++d) dst[d] = weights.of(dst[d], src[d]);
        }
      }
    }
  });
}

// A sink is a partial of LSE sinks[h] whose out is 0.
void cpu_apply_sinks(TensorView out, TensorView lse, ConstTensorView sinks, const Stream& stream) {
  stream.cpu_task([=] {
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < out.size(0); ++row) {
      for (std::int64_t head = 0; head < out.size(1); ++head) {
        float* row_lse = lse.as<float>() + row * lse.stride(0) + head * lse.stride(1);
        const MergeWeights weights =
            merge_weights(Lse::load(row_lse), {sinks.as<float>()[head * sinks.stride(0)], 0});
        weights.lse.store(row_lse);
        if (weights.a == 1) continue;
        float* to = out.as<float>() + row * out.stride(0) + head * out.stride(1);
        for (std::int64_t d = 0; d < out.size(2); ++d)
          to[d] = weights.a == 0 ? 0 : weights.of(to[d], 0);
      }
    }
  });
}

void cpu_sinks_backward(ConstTensorView lse, ConstTensorView delta, ConstTensorView sinks,
                        TensorView dsinks, const Stream& stream) {
  stream.cpu_task([=] {
#pragma omp parallel for schedule(static)
    for (std::int64_t head = 0; head < lse.size(1); ++head) {
      const float sink = sinks.as<float>()[head * sinks.stride(0)];
      double sum = 0;  // one chain: the order does not depend on the threads
      for (std::int64_t row = 0; row < lse.size(0); ++row) {
        // A sink of -inf weighs nothing, also in a row that sees nothing else.
        if (sink == -std::numeric_limits<float>::infinity()) continue;
        const double row_lse = Lse::load(row_of<float>(lse, row, head)).value();
        sum += std::exp(static_cast<double>(sink) - row_lse) *
               static_cast<double>(*row_of<float>(delta, row, head));
      }
      dsinks.as<float>()[head * dsinks.stride(0)] = static_cast<float>(-sum);
    }
  });
}

}  // namespace longhaul::attention::detail

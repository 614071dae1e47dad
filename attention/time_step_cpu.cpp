#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"

namespace longhaul::attention::detail {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::heads_of;
using runtime::ops::detail::kParallelElements;
using runtime::ops::detail::to_float;
using runtime::ops::detail::with_activation;

void cpu_scale_by_step(ConstTensorView x, ConstTensorView time_step, TensorView v,
                       const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("scale_by_step", x.dtype(), [&]<class T>() {
    stream.cpu_task([=, from = heads_of<T>(x), to = heads_of<T>(v), steps = time_step.as<float>()] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          const T* in = from.of(row, head);
          T* out = to.of(row, head);
          const float step = steps[row * heads + head];
#pragma omp simd
          for (std::int64_t i = 0; i < dim; ++i) out[i] = T(step * to_float(in[i]));
        }
      }
    });
  });
}

void cpu_add_skip(ConstTensorView x, ConstTensorView d, TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("add_skip", x.dtype(), [&]<class T>() {
    stream.cpu_task([=, from = heads_of<T>(x), to = heads_of<float>(y), skip = d.as<float>()] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          const T* in = from.of(row, head);
          float* out = to.of(row, head);
#pragma omp simd
          for (std::int64_t i = 0; i < dim; ++i) out[i] += skip[head] * to_float(in[i]);
        }
      }
    });
  });
}

void cpu_time_step_backward(const TimeStepBackwardInputs& inputs, TensorView dx,
                            TensorView dtime_step, TensorView dd, const Stream& stream) {
  const std::int64_t rows = dx.size(0), heads = dx.size(1), dim = dx.size(2);
  with_activation("time_step_backward", dx.dtype(), [&]<class T>() {
    stream.cpu_task([=, x = heads_of<T>(inputs.x), dv = heads_of<float>(inputs.dv),
                     dy = heads_of<T>(inputs.dy), to = heads_of<T>(dx),
                     steps = inputs.time_step.as<float>(), skip = inputs.d.as<float>(),
                     dsteps = dtime_step.as<float>(), dskip = dd.as<float>()] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t head = 0; head < heads; ++head) {
        double skip_sum = 0;
        for (std::int64_t row = 0; row < rows; ++row) {
          const T* xs = x.of(row, head);
          const float* dvs = dv.of(row, head);
          const T* dys = dy.of(row, head);
          T* out = to.of(row, head);
          const float step = steps[row * heads + head];
          double of_step = 0, of_skip = 0;
#pragma omp simd reduction(+ : of_step, of_skip)
          for (std::int64_t i = 0; i < dim; ++i) {
            const float value = to_float(xs[i]), dyi = to_float(dys[i]), dvi = dvs[i];
            of_step += static_cast<double>(value) * dvi;
            of_skip += static_cast<double>(value) * dyi;
            out[i] = T(step * dvi + skip[head] * dyi);
          }
          dsteps[row * heads + head] = static_cast<float>(of_step);
          skip_sum += of_skip;
        }
        dskip[head] += static_cast<float>(skip_sum);
      }
    });
  });
}

}  // namespace longhaul::attention::detail

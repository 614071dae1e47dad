#include "models/short_convolution.h"

#include <utility>

#include "attention/short_conv.h"

namespace longhaul::models {

using parallel::Direction;
using runtime::ConstTensorView;
using runtime::Tensor;
using runtime::TensorView;

ShortConvolution::ShortConvolution(std::int64_t width, std::int64_t channels, runtime::DType dtype,
                                   ConvolutionNames names, int group, std::size_t mask)
    : width_(width),
      channels_(channels),
      dtype_(dtype),
      names_(std::move(names)),
      group_(group),
      mask_(mask) {}

void ShortConvolution::prepare(const parallel::Attention& attention,
                               const parallel::AttentionBatch& batch) const {
  attention.prepare_halo(batch, halo());
}

std::shared_ptr<const attention::ConvRows> ShortConvolution::rows_of(
    const PassContext& context) const {
  return context.batch.attention.at(mask_)->conv_rows(context.resources.attention.rank(), width_);
}

Stages ShortConvolution::gather(const PassContext& context, const Tensor& x, Tensor& left) const {
  const auto& batch = *context.batch.attention.at(mask_);
  parallel::Attention& attention = context.resources.attention;
  left = Tensor({rows_of(context)->left_rows, channels_}, dtype_, context.resources.compute);
  const auto call = attention.halo(batch, halo(), Direction::forward, x, left);
  call->start();
  co_await in_flight;
  call->advance();
  co_await in_flight;
  call->finish();
}

Tensor ShortConvolution::output(const PassContext& context, const Tensor& x,
                                const Tensor& left) const {
  const runtime::Stream& compute = context.resources.compute;
  const Weights weights(context.resources.store, group_);
  Tensor y(x.view().sizes(), dtype_, compute);
  attention::short_conv(
      rows_of(context),
      {x, left, weights.value(names_.first, names_.last).value,
       names_.bias.empty() ? ConstTensorView() : weights.value(names_.bias).value},
      y, compute);
  return y;
}

Stages ShortConvolution::backward(const PassContext& context, const Tensor& x, const Tensor& left,
                                  const Tensor& dy, Tensor& dx) const {
  const runtime::Stream& compute = context.resources.compute;
  const auto& batch = *context.batch.attention.at(mask_);
  parallel::Attention& attention = context.resources.attention;
  const Weights weights(context.resources.store, group_);
  const Weight weight = weights.value(names_.first, names_.last);
  const bool biased = !names_.bias.empty();
  const auto rows = rows_of(context);
  const attention::ShortConvInputs inputs{
      x, left, weight.value, biased ? weights.value(names_.bias).value : ConstTensorView()};
  attention::short_conv_dpre(rows, inputs, dy, dy, compute);
  const Tensor right({rows->right_rows, channels_}, dtype_, compute);
  const auto call = attention.halo(batch, halo(), Direction::backward, dy, right);
  call->start();
  co_await in_flight;
  call->advance();
  co_await in_flight;
  call->finish();
  dx = Tensor(x.view().sizes(), dtype_, compute);
  attention::short_conv_backward(
      rows, inputs, dy, right,
      {dx, weight.gradient(compute),
       biased ? weights.value(names_.bias).gradient(compute) : TensorView()},
      compute);
}

}  // namespace longhaul::models

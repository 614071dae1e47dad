#pragma once
// Private to attention/: what a short convolution calls after its checks, one function a device.
// Every function only enqueues; sizes may be zero.

#include "attention/short_conv.h"

namespace longhaul::attention::detail {

void cpu_short_conv(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                    runtime::TensorView y, const runtime::Stream& stream);
void cpu_short_conv_dpre(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                         runtime::ConstTensorView dy, runtime::TensorView dpre,
                         const runtime::Stream& stream);
void cpu_short_conv_backward(const std::shared_ptr<const ConvRows>& rows,
                             const ShortConvInputs& inputs, runtime::ConstTensorView dpre,
                             runtime::ConstTensorView right, const ShortConvGradients& gradients,
                             const runtime::Stream& stream);

}  // namespace longhaul::attention::detail

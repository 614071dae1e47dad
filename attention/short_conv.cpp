#include "attention/short_conv.h"

#include <algorithm>

#include "attention/block_check_impl.h"
#include "attention/short_conv_impl.h"
#include "runtime/error.h"
#include "runtime/require_cpu.h"

namespace longhaul::attention {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::ExitCode;
using runtime::Run;
using runtime::Stream;
using runtime::TensorView;

namespace {

/// The runs with those that follow one another as one.
std::vector<Run> joined(std::span<const Run> runs) {
  std::vector<Run> all;
  for (const Run& run : runs) {
    if (run.stride != 1) {
      runtime::fail(ExitCode::config, "the short convolution reads the tokens before its own: it ",
                    "takes runs of consecutive tokens, not every ", run.stride,
                    "th; use a layout other than striped");
    }
    if (run.count == 0) continue;
    LONGHAUL_CHECK(all.empty() || all.back()[all.back().count] <= run.first, "a run from token ",
                   run.first, " after one that ends before token ", all.back()[all.back().count]);
    if (!all.empty() && all.back()[all.back().count] == run.first) {
      all.back().count += run.count;
    } else {
      all.push_back(run);
    }
  }
  return all;
}

}  // namespace

ConvRows conv_rows(std::span<const Run> runs, std::span<const std::int64_t> documents,
                   std::int64_t width) {
  if (width < 1 || width > kMaxConvWidth) {
    runtime::fail(ExitCode::config, "a short convolution of width ", width, "; expected 1 to ",
                  kMaxConvWidth);
  }
  LONGHAUL_CHECK(!documents.empty() && documents.front() == 0 && std::ranges::is_sorted(documents),
                 "the offsets of documents rise from 0");
  ConvRows rows{.width = width};
  for (const Run& run : joined(runs)) {
    const std::int64_t end = run[run.count];
    LONGHAUL_CHECK(0 <= run.first && end <= documents.back(), "a run of tokens [", run.first, ", ",
                   end, ") of ", documents.back());
    // Behind the document that holds the run's first token.
    auto next = std::ranges::upper_bound(documents, run.first);
    const std::int64_t left = std::min(width - 1, run.first - next[-1]);
    if (left > 0) rows.left.push_back({run.first - left, left});
    for (std::int64_t token = run.first; token < end; ++next) {
      const std::int64_t piece_end = std::min(*next, end);
      if (piece_end == token) continue;  // an empty document
      const std::int64_t before = token == run.first ? left : 0;
      const std::int64_t behind = piece_end == end ? std::min(width - 1, *next - end) : 0;
      rows.pieces.push_back({rows.rows, rows.rows + piece_end - token, rows.left_rows, before,
                             rows.right_rows, behind});
      if (behind > 0) rows.right.push_back({end, behind});
      rows.rows += piece_end - token;
      rows.left_rows += before;
      rows.right_rows += behind;
      token = piece_end;
    }
  }
  return rows;
}

namespace {

/// rows x channels of the activation dtype, the last dim contiguous.
void check_rows(const char* what, const ConstTensorView& view, std::int64_t rows,
                const ShortConvInputs& inputs, const Stream& stream) {
  detail::check(what, view, {rows, inputs.x.size(1)}, inputs.x.dtype(), stream);
  LONGHAUL_CHECK(view.size(1) <= 1 || view.stride(1) == 1, "the channels of ", what, " are ",
                 view.stride(1), " elements apart; expected 1");
}

/// Of the weights' layout: [C,K] and [C], contiguous.
void check_parameters(const char* weight_name, const ConstTensorView& weight, const char* bias_name,
                      const ConstTensorView& bias, std::int64_t channels, std::int64_t width,
                      const Stream& stream) {
  detail::check(weight_name, weight, {channels, width}, DType::float32, stream);
  LONGHAUL_CHECK(weight.contiguous(), weight_name, " is strided; expected contiguous");
  if (bias.data() == nullptr) return;
  detail::check(bias_name, bias, {channels}, DType::float32, stream);
  LONGHAUL_CHECK(bias.contiguous(), bias_name, " is strided; expected contiguous");
}

void check_inputs(const char* name, const ConvRows& rows, const ShortConvInputs& inputs,
                  const Stream& stream) {
  const ConstTensorView& x = inputs.x;
  LONGHAUL_CHECK(x.dims() == 2, name, ": x has ", x.dims(), " dims; expected rows, channels");
  LONGHAUL_CHECK(x.dtype() == DType::float32 || x.dtype() == DType::bfloat16, name, ": x holds ",
                 runtime::name(x.dtype()), "; expected float32 or bfloat16");
  check_rows("x", x, rows.rows, inputs, stream);
  check_rows("the left halo", inputs.left, rows.left_rows, inputs, stream);
  check_parameters("weight", inputs.weight, "bias", inputs.bias, x.size(1), rows.width, stream);
  runtime::require_cpu(name, stream);
}

}  // namespace

void short_conv(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                TensorView y, const Stream& stream) {
  check_inputs("short_conv", *rows, inputs, stream);
  check_rows("y", y, rows->rows, inputs, stream);
  detail::cpu_short_conv(rows, inputs, y, stream);
}

void short_conv_dpre(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                     ConstTensorView dy, TensorView dpre, const Stream& stream) {
  check_inputs("short_conv_dpre", *rows, inputs, stream);
  check_rows("dy", dy, rows->rows, inputs, stream);
  check_rows("dpre", dpre, rows->rows, inputs, stream);
  detail::cpu_short_conv_dpre(rows, inputs, dy, dpre, stream);
}

void short_conv_backward(const std::shared_ptr<const ConvRows>& rows, const ShortConvInputs& inputs,
                         ConstTensorView dpre, ConstTensorView right,
                         const ShortConvGradients& gradients, const Stream& stream) {
  check_inputs("short_conv_backward", *rows, inputs, stream);
  check_rows("dpre", dpre, rows->rows, inputs, stream);
  check_rows("the right halo", right, rows->right_rows, inputs, stream);
  check_rows("dx", gradients.dx, rows->rows, inputs, stream);
  check_parameters("dweight", gradients.dweight, "dbias", gradients.dbias, inputs.x.size(1),
                   rows->width, stream);
  LONGHAUL_CHECK((gradients.dbias.data() == nullptr) == (inputs.bias.data() == nullptr),
                 "dbias goes with bias: one of them has no data");
  detail::cpu_short_conv_backward(rows, inputs, dpre, right, gradients, stream);
}

}  // namespace longhaul::attention

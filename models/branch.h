#pragma once
// What every block has around its own work f: x -> alpha base + beta f(norm(x)).

#include <cstdint>
#include <string>

#include "models/block.h"
#include "models/weights.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// How f joins the residual stream.
struct Residual {
  double alpha = 1, beta = 1;
  bool of_norm = false;  ///< the base is norm(x), as MiniMax has it; else x
};

/// Where RMSNorm stands around f.
enum class NormPlaces : unsigned char {
  before,  ///< x + f(norm(x))
  after,   ///< x + norm(f(x)), as OLMo 2 has it
  both     ///< x + norm_after(f(norm(x))), as Gemma 2 has it
};

/// RMSNorm around f, and the residual. n rows; T is the activation dtype.
struct BranchShape {
  std::int64_t hidden = 0;
  NormPlaces norms = NormPlaces::before;
  double norm_eps = 1e-5;
  float norm_offset = 0;  ///< added to the norm's weights: 1 where these begin at zero
  Residual residual = {};
  runtime::DType dtype = runtime::DType::float32;  ///< of activations
};

/// Of a block's parameters: its norm, the prefix of the others, and the norm behind f. A norm that
/// the branch has no place for is empty.
struct BlockNames {
  std::string norm, prefix, norm_after = {};
};

/// Borrowed by a block's passes. The normalised rows are not kept: they are computed again where
/// they are needed, bit for bit.
class Branch {
 public:
  /// Adds the norm's weight `norm` [h] to the table: fp32, not decayed.
  Branch(const BranchShape& shape, std::string norm, int group, parallel::ParameterTable& table);

  const BranchShape& shape() const { return shape_; }

  /// norm(x), T[n,h], of the block's input; inv_rms fp32[n] is kept for the calls below.
  runtime::Tensor normed(const Resources& resources, runtime::ConstTensorView input,
                         runtime::Tensor& inv_rms) const;
  runtime::Tensor normed_again(const Resources& resources, runtime::ConstTensorView input,
                               runtime::ConstTensorView inv_rms) const;

  /// The block's output T[n,h], where f ends with a projection: f = inner weight^T, inner T[n,m],
  /// weight[h,m].
  runtime::Tensor output(const Resources& resources, runtime::ConstTensorView input,
                         runtime::ConstTensorView inv_rms, runtime::ConstTensorView inner,
                         const Weight& weight) const;

  /// Gradient of f's output, from dx, that of the block's: dx itself, or in `own`.
  runtime::ConstTensorView gradient(const Resources& resources, runtime::ConstTensorView dx,
                                    runtime::Tensor& own) const;
  /// dx <- the gradient of the block's input, from that of its output and dnormed fp32[n,h], f's
  /// through norm(x), which is overwritten. Adds the norm's gradient.
  void backward(const Resources& resources, runtime::ConstTensorView input,
                runtime::ConstTensorView inv_rms, const runtime::Tensor& dnormed,
                runtime::TensorView dx) const;

  /// Kept by a pass: the input and a number a row.
  std::int64_t kept_bytes(std::int64_t rows) const;
  /// output()'s, what it returns included; backward()'s with dnormed and the normalised rows;
  /// gradient()'s.
  std::int64_t output_bytes(std::int64_t rows) const;
  std::int64_t backward_bytes(std::int64_t rows) const;
  std::int64_t gradient_bytes(std::int64_t rows) const;

 private:
  runtime::ops::NormWeight weight(const Weights& weights) const;

  const BranchShape shape_;
  const std::string norm_;  // name of the parameter
  const int group_;
};

}  // namespace longhaul::models

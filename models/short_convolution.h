#pragma once
// The short causal convolution of a block: its parameters, and its calls over a rank's rows, whose
// runs read rows of other ranks.

#include <cstdint>
#include <string>

#include "models/block.h"
#include "models/weights.h"

namespace longhaul::models {

/// Of parameters. Several weights are one, the rows of `first` to those of `last`.
struct ConvolutionNames {
  std::string first, last;
  std::string bias;  ///< empty: none
};

/// Borrowed by a block's passes. n rows of C channels; T is the activation dtype.
class ShortConvolution {
 public:
  /// A weight [channels, 1, width] each of `weights`, drawn as U(+-1/sqrt(width)), and the bias
  /// [C], which begins at zero. fp32, not decayed.
  struct Part {
    std::string name;
    std::int64_t channels = 0;
  };
  ShortConvolution(std::int64_t width, const std::vector<Part>& weights, std::string bias,
                   int group, std::size_t mask, parallel::ParameterTable& table);

  std::int64_t channels() const { return channels_; }
  void prepare(const parallel::Attention& attention, const parallel::AttentionBatch& batch) const;

  /// left T[l,C] <- the rows of x T[n,C] before this rank's runs, of other ranks.
  Stages gather(const PassContext& context, const runtime::Tensor& x, runtime::Tensor& left) const;
  /// silu of the convolution, T[n,C].
  runtime::Tensor output(const PassContext& context, const runtime::Tensor& x,
                         const runtime::Tensor& left) const;
  /// dx T[n,C] from dy T[n,C], which is overwritten. Adds the parameters' gradients.
  Stages backward(const PassContext& context, const runtime::Tensor& x, const runtime::Tensor& left,
                  const runtime::Tensor& dy, runtime::Tensor& dx) const;

 private:
  const std::int64_t width_;
  const std::string first_, last_, bias_;  // names of parameters
  const int group_;
  const std::size_t mask_;
  const runtime::DType dtype_;
  std::int64_t channels_ = 0;
};

}  // namespace longhaul::models

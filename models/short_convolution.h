#pragma once
// The short causal convolution of a block: the calls over a rank's rows, whose runs read rows of
// other ranks.

#include <cstdint>
#include <memory>
#include <string>

#include "models/block.h"
#include "models/weights.h"

namespace longhaul::models {

/// Of parameters, fp32: the weights [channels, 1, width] of the rows of x from `first` to `last`,
/// and the bias [C] of all; empty: none.
struct ConvolutionNames {
  std::string first, last, bias;
};

/// Borrowed by a block's passes. x has n rows of C channels; T is the activation dtype.
class ShortConvolution {
 public:
  ShortConvolution(std::int64_t width, std::int64_t channels, runtime::DType dtype,
                   ConvolutionNames names, int group, std::size_t mask);

  /// What a call gathers.
  parallel::HaloShape halo() const { return {width_, channels_, dtype_}; }
  /// Prepares the exchanges of a batch.
  void prepare(const parallel::Attention& attention, const parallel::AttentionBatch& batch) const;

  /// left T[l,C] <- the rows of x T[n,C] before this rank's runs.
  Stages gather(const PassContext& context, const runtime::Tensor& x, runtime::Tensor& left) const;
  /// silu of the convolution, T[n,C].
  runtime::Tensor output(const PassContext& context, const runtime::Tensor& x,
                         const runtime::Tensor& left) const;
  /// dx T[n,C] from dy T[n,C], which is overwritten. Adds the parameters' gradients.
  Stages backward(const PassContext& context, const runtime::Tensor& x, const runtime::Tensor& left,
                  const runtime::Tensor& dy, runtime::Tensor& dx) const;

 private:
  std::shared_ptr<const attention::ConvRows> rows_of(const PassContext& context) const;

  const std::int64_t width_, channels_;
  const runtime::DType dtype_;
  const ConvolutionNames names_;
  const int group_;
  const std::size_t mask_;
};

}  // namespace longhaul::models

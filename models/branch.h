#pragma once
// What every block has around its own work f: x -> alpha base + beta f, norms before f, behind it
// or both.

#include <cstdint>
#include <string>

#include "models/block.h"
#include "models/projection.h"
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

/// What a pass keeps for its branch, beside the block's input.
struct BranchKept {
  runtime::Tensor inv_rms;        ///< fp32[n], with a norm before f
  runtime::Tensor inner;          ///< T[n,h], what f gives, with a norm behind it
  runtime::Tensor inner_inv_rms;  ///< fp32[n] of that
};

/// Borrowed by a block's passes. f ends with a projection. The normalised rows are not kept: they
/// are computed again where they are needed, bit for bit; what a norm behind f takes is.
class Branch {
 public:
  /// Adds the norms' weights [h] to the table: fp32, not decayed. Throws Error(config) for a
  /// residual of a norm that the branch does not have.
  Branch(const BranchShape& shape, std::string norm, std::string norm_after, int group,
         parallel::ParameterTable& table);

  const BranchShape& shape() const { return shape_; }
  bool norms_before() const { return shape_.norms != NormPlaces::after; }
  bool norms_after() const { return shape_.norms != NormPlaces::before; }

  /// What f sees, T[n,h]: norm(x) of the block's input, in `own`, or x itself.
  runtime::ConstTensorView normed(const Resources& resources, runtime::ConstTensorView input,
                                  BranchKept& kept, runtime::Tensor& own) const;
  runtime::ConstTensorView normed_again(const Resources& resources, runtime::ConstTensorView input,
                                        const BranchKept& kept, runtime::Tensor& own) const;

  /// With a norm behind f: f = the projection of `projected` T[n,m], which output() and gradient()
  /// then find in `kept`.
  void project(const Resources& resources, runtime::ConstTensorView projected,
               const Projection& projection, BranchKept& kept) const;
  /// The block's output T[n,h], after project().
  runtime::Tensor output(const Resources& resources, runtime::ConstTensorView input,
                         const BranchKept& kept) const;
  /// The same without a norm behind f, which is the projection of `projected` T[n,m].
  runtime::Tensor output(const Resources& resources, runtime::ConstTensorView input,
                         const BranchKept& kept, runtime::ConstTensorView projected,
                         const Projection& projection) const;

  /// Gradient of f's output, from dx, that of the block's: dx itself, or in `own`. What a norm
  /// behind f has kept is released, its gradient added.
  runtime::ConstTensorView gradient(const Resources& resources, runtime::ConstTensorView dx,
                                    BranchKept& kept, runtime::Tensor& own) const;
  /// dx <- the gradient of the block's input, from that of its output and dnormed fp32[n,h], f's
  /// through what it saw, which is overwritten. Adds the gradient of the norm before f.
  void backward(const Resources& resources, runtime::ConstTensorView input, const BranchKept& kept,
                const runtime::Tensor& dnormed, runtime::TensorView dx) const;

  /// Kept by a pass: the input, what f gives before its norm, and a number a row and norm.
  std::int64_t kept_bytes(std::int64_t rows) const;
  /// Of these, what gradient() releases.
  std::int64_t released_bytes(std::int64_t rows) const;
  /// project()'s and output()'s beside `projected` bytes of what f projects, what they return
  /// included; gradient()'s, and of these those of what it returns; backward()'s with dnormed and
  /// the normalised rows.
  std::int64_t output_bytes(std::int64_t rows, std::int64_t projected) const;
  std::int64_t gradient_bytes(std::int64_t rows) const;
  std::int64_t own_bytes(std::int64_t rows) const;
  std::int64_t backward_bytes(std::int64_t rows) const;

 private:
  runtime::ops::NormWeight weight(const Weights& weights, const std::string& norm) const;
  /// T[n,h].
  runtime::Tensor rows_like(runtime::ConstTensorView rows, const runtime::Stream& compute) const;
  /// out <- alpha base + beta out.
  void join(const Resources& resources, runtime::ConstTensorView base,
            const runtime::Tensor& out) const;

  const BranchShape shape_;
  const std::string norm_, norm_after_;  // names of the parameters
  const int group_;
};

}  // namespace longhaul::models

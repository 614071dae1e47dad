#pragma once
// What the blocks around a recurrence share: norm, projections, perhaps a short convolution, the
// recurrence call, norm and gate of its output, output projection. What differs is a Mixer's.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "attention/linear.h"
#include "models/block.h"
#include "models/branch.h"
#include "models/short_convolution.h"

namespace longhaul::models {

/// What a recurrence takes: views of the projections or of these tensors, which are empty where
/// nothing had to be computed.
struct RecurrenceInputs {
  attention::LinearInputs views;
  runtime::Tensor q, k, v;          ///< T
  runtime::Tensor log_decay, beta;  ///< fp32
  runtime::Tensor time_step;        ///< fp32[n,H], Mamba-2
};

/// What a recurrence gives backward: fp32; of decays and beta, empty where there is nothing to
/// learn.
struct RecurrenceGradients {
  runtime::Tensor q, k, v, log_decay, beta;
};

/// A layer's own part of one pass, n rows; T is the activation dtype. It owns what it keeps from
/// project() to project_backward(). Calls only enqueue, in this order; inputs() and inner() again
/// in backward, with the same bits.
class Mixer {
 public:
  virtual ~Mixer() = default;

  /// From norm(x) T[n,h], the projections. Returns T[n,C], those that the convolution takes, or
  /// without one inputs().
  virtual runtime::Tensor project(runtime::ConstTensorView normed) = 0;
  /// Of `mixed`, what the convolution made of them.
  virtual RecurrenceInputs inputs(const runtime::TensorView& mixed) const = 0;
  /// Adds to the recurrence's out fp32[n,H,E].
  virtual void add_to(const runtime::TensorView& out, const runtime::TensorView& mixed) const {
    static_cast<void>(out), static_cast<void>(mixed);
  }
  /// What the output projection takes, T[n,m], of the recurrence's out.
  virtual runtime::Tensor inner(const runtime::TensorView& out) const = 0;

  /// Gradient of the recurrence's out, T[n,H,E], from that of inner(), fp32[n,m].
  virtual runtime::Tensor inner_backward(const runtime::TensorView& out,
                                         const runtime::Tensor& dinner) = 0;
  /// Gradient of `mixed`, T[n,C].
  virtual runtime::Tensor inputs_backward(const runtime::TensorView& mixed,
                                          const RecurrenceInputs& inputs,
                                          const runtime::Tensor& dout,
                                          const RecurrenceGradients& gradients) = 0;
  /// dnormed fp32[n,h], overwritten, from the gradient of what project() returned, T[n,C].
  virtual void project_backward(runtime::Tensor dprojected, runtime::ConstTensorView normed,
                                runtime::TensorView dnormed) = 0;
};

/// Bytes a row of a Mixer's tensors.
struct MixerBytes {
  std::int64_t kept = 0;              ///< from project() on, beside what it returns
  std::int64_t projecting = 0;        ///< for a while in project()
  std::int64_t inputs = 0;            ///< RecurrenceInputs
  std::int64_t inputs_forming = 0;    ///< for a while in inputs(), beside its result
  std::int64_t inner_forming = 0;     ///< for a while in inner(), beside its result
  std::int64_t inner_backward = 0;    ///< from there on, or for a while, beside dout
  std::int64_t inputs_backward = 0;   ///< from there on, or for a while, beside dmixed
  std::int64_t project_backward = 0;  ///< for a while there
};

/// Sizes of a block's recurrence and of what stands around it.
struct RecurrentShape {
  BranchShape branch = {};
  attention::Recurrence recurrence = {};
  std::int64_t heads = 0, key_heads = 0, dim = 0, value_dim = 0;  ///< H, H_k, D, E
  std::int64_t channels = 0;                                      ///< C, of project()
  std::int64_t inner = 0;                                         ///< m
};

/// Of a kind, with scale 1/sqrt(dim).
attention::Recurrence scaled_recurrence(const std::string& kind, std::int64_t dim);

class RecurrentBlock : public Block {
 public:
  std::unique_ptr<BlockPass> begin(const PassContext& context) const final;
  void prepare(const parallel::Attention& attention, const parallel::Expression& scheme,
               std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const final;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const final;
  std::int64_t kept_bytes(std::int64_t rows) const final;
  PassingBytes passing_bytes(std::int64_t rows, const parallel::CallBytes& call) const final;
  std::optional<AttentionCall> attention_call() const final;

 protected:
  /// Adds the weight of the norm in front to the table.
  RecurrentBlock(const RecurrentShape& shape, std::size_t mask, const std::string& norm, int group,
                 parallel::ParameterTable& table);
  /// What project() returns goes through a convolution of these parameters.
  void convolve(std::int64_t width, ConvolutionNames names);
  /// The output projection's parameter, [h,m].
  void project_with(std::string name) { output_ = std::move(name); }

  virtual std::unique_ptr<Mixer> mixer(const PassContext& context) const = 0;
  virtual MixerBytes mixer_bytes() const = 0;
  /// Elements of its matrices.
  virtual double weights() const = 0;

 private:
  class Pass;
  parallel::LinearCall linear_call() const;
  /// Numbers a row of RecurrenceGradients.
  std::int64_t gradient_elements() const;

  const RecurrentShape sizes_;
  const std::size_t mask_;
  const Branch branch_;
  std::string output_;
  std::optional<ShortConvolution> convolution_;
};

}  // namespace longhaul::models

#pragma once
// One transformer layer: forward, and backward by hand.

#include "models/llama_config.h"
#include "models/parameters.h"
#include "parallel/attention.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// cos and sin of this batch's positions, shared by all layers: [n, D/2] fp32.
struct RopeTables {
  runtime::Tensor cosines, sines;
};

/// What a layer's backward needs. T is the activation dtype, n this rank's rows. The normalised
/// rows and the swiglu output are not kept: the backward redoes those cheap operations, bit for
/// bit.
struct LayerActivations {
  runtime::Tensor input;             ///< T[n,h]; all that full recomputation keeps
  runtime::Tensor input_inv_rms;     ///< fp32[n]
  runtime::Tensor q, k, v;           ///< T[n,H,D], T[n,H_kv,D] twice; q and k rotated
  runtime::Tensor attended;          ///< T[n,H,D], attention's out
  runtime::Tensor lse;               ///< fp32[n,H]
  runtime::Tensor residual;          ///< T[n,h], input + attention's projection
  runtime::Tensor residual_inv_rms;  ///< fp32[n]
  runtime::Tensor gate, up;          ///< T[n,f]

  /// Frees everything but the input.
  void keep_input_only();
};

/// Layer `index` of a model. Borrows the store and the attention; all work goes to `compute`. Every
/// rank of the attention's communicator calls in the same order.
class Layer {
 public:
  Layer(const LlamaConfig& config, const ParameterStore& store, std::int64_t index,
        parallel::Attention& attention, const runtime::Stream& compute);

  /// Fills all members of `activations` from its input.
  void compute_activations(LayerActivations& activations, const RopeTables& rope) const;
  /// residual + down(swiglu(gate, up)): T[n,h].
  runtime::Tensor output(const LayerActivations& activations) const;

  /// dx T[n,h]: on entry the gradient of the output, on exit that of the input. Adds the layer's
  /// gradients into the store's.
  void backward(const LayerActivations& activations, const RopeTables& rope,
                runtime::TensorView dx) const;

 private:
  /// A projection's weight [out,in] as matmuls read it, and its fp32 gradient.
  struct Weight {
    runtime::ConstTensorView value;
    runtime::TensorView gradient;
  };

  Weight norm_weight(const ParameterStore& store, const std::string& suffix) const;
  Weight weight(const ParameterStore& store, const std::string& suffix) const;
  runtime::Tensor activation(std::int64_t rows, std::int64_t columns) const;
  /// y = x W^T: T[n,in] -> T[n,out].
  void project(runtime::ConstTensorView x, const Weight& weight, runtime::TensorView y) const;
  void attend(LayerActivations& activations) const;
  /// dx through down(swiglu(gate(norm), up(norm))) and its norm.
  void backward_mlp(const LayerActivations& activations, runtime::TensorView dx) const;
  void backward_attention(const LayerActivations& activations, const RopeTables& rope,
                          runtime::TensorView dx) const;

  const LlamaConfig config_;
  const std::int64_t index_;
  parallel::Attention& attention_;
  const runtime::Stream compute_;
  const Weight input_norm_, q_, k_, v_, o_, residual_norm_, gate_, up_, down_;
};

}  // namespace longhaul::models

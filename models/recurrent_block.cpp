#include "models/recurrent_block.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/weights.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

attention::Recurrence scaled_recurrence(const std::string& kind, std::int64_t dim) {
  attention::Recurrence recurrence = attention::recurrence_of_kind(kind);
  recurrence.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  return recurrence;
}

/// What the convolution and inputs() give is not kept: backward redoes those cheap operations, bit
/// for bit.
class RecurrentBlock::Pass final : public BlockPass {
 public:
  Pass(const RecurrentBlock& block, const PassContext& context)
      : block_(block),
        sizes_(block.sizes_),
        dtype_(sizes_.branch.dtype),
        context_(context),
        resources_(context.resources),
        compute_(context.resources.compute),
        batch_(*context.batch.attention.at(block.mask_)),
        mixer_(block.mixer(context)) {}

  void receive(std::vector<Tensor> received) override {
    again_ = !received.empty();
    if (!again_) return;
    left_ = std::move(received[0]);
    kept_ = {std::move(received[1]), std::move(received[2])};
  }

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    {
      Tensor own;
      projected_ = mixer_->project(block_.branch_.normed(resources_, input_, branch_kept_, own));
    }
    if (block_.convolution_ && !again_) {
      Stages gather = block_.convolution_->gather(context_, projected_, left_);
      while (gather.advance()) co_await in_flight;
    }
    const Tensor own = convolved();
    const TensorView mixed = own.empty() ? projected_ : own;
    out_ = Tensor({rows(), sizes_.heads, sizes_.value_dim}, DType::float32, compute_);
    {
      const RecurrenceInputs inputs = mixer_->inputs(mixed);
      const parallel::LinearForward tensors{inputs.views, {}, out_, {}};
      parallel::Attention& attention = resources_.attention;
      const auto call =
          again_ ? attention.linear_again(batch_, block_.linear_call(), tensors, kept_)
                 : attention.linear_forward(batch_, block_.linear_call(), tensors, kept_);
      call->start();
      co_await in_flight;
      call->advance();
      co_await in_flight;
      call->finish();
    }
    mixer_->add_to(out_, mixed);
  }

  Tensor output() const override {
    const Weights weights(resources_.store, block_.group());
    const Tensor inner = mixer_->inner(out_);
    return block_.branch_.output(resources_, input_, branch_kept_, inner,
                                 weights.working(block_.output_));
  }

  std::vector<Tensor> take_received(Recompute) override {
    std::vector<Tensor> received;
    received.push_back(std::move(left_));
    received.push_back(std::move(kept_.states));
    received.push_back(std::move(kept_.transitions));
    return received;
  }

  Stages backward(TensorView dx) override {
    Tensor dout = backward_after(dx);
    Tensor dmixed;
    {
      const Tensor own = convolved();
      const TensorView mixed = own.empty() ? projected_ : own;
      const RecurrenceInputs inputs = mixer_->inputs(mixed);
      RecurrenceGradients gradients = gradients_of(inputs);
      {
        const auto call = resources_.attention.linear_backward(batch_, block_.linear_call(),
                                                               {inputs.views,
                                                                {},
                                                                dout,
                                                                {},
                                                                gradients.q,
                                                                gradients.k,
                                                                gradients.v,
                                                                gradients.log_decay,
                                                                gradients.beta,
                                                                {}},
                                                               kept_);
        call->start();
        co_await in_flight;
        call->advance();
        co_await in_flight;
        call->finish();
      }
      kept_ = {};
      dmixed = mixer_->inputs_backward(mixed, inputs, dout, gradients);
    }
    dout = Tensor();
    if (block_.convolution_) {
      Tensor dprojected;
      Stages through =
          block_.convolution_->backward(context_, projected_, left_, dmixed, dprojected);
      while (through.advance()) co_await in_flight;
      dmixed = std::move(dprojected);
    }
    projected_ = Tensor();
    backward_before(std::move(dmixed), dx);
  }

 private:
  std::int64_t rows() const { return input_.size(0); }

  /// What the convolution makes of the projections; empty without one.
  Tensor convolved() const {
    if (!block_.convolution_) return {};
    return block_.convolution_->output(context_, projected_, left_);
  }

  RecurrenceGradients gradients_of(const RecurrenceInputs& inputs) const {
    const auto like = [&](const ConstTensorView& view) {
      return Tensor(view.sizes(), DType::float32, compute_);
    };
    RecurrenceGradients gradients{
        like(inputs.views.q), like(inputs.views.k), like(inputs.views.v), {}, {}};
    const attention::Decay decay = sizes_.recurrence.decay;
    if (decay == attention::Decay::scalar || decay == attention::Decay::vector)
      gradients.log_decay = like(inputs.views.log_decay);
    if (sizes_.recurrence.rule == attention::StateRule::delta)
      gradients.beta = like(inputs.views.beta);
    return gradients;
  }

  /// The gradient of the recurrence's out from dx, through output projection, gate and norm.
  Tensor backward_after(ConstTensorView dx) {
    const Weights weights(resources_.store, block_.group());
    const Weight output = weights.working(block_.output_);
    const Tensor dinner({rows(), sizes_.inner}, DType::float32, compute_);
    {
      Tensor own;
      const ConstTensorView dbranch = block_.branch_.gradient(resources_, dx, branch_kept_, own);
      const Tensor inner = mixer_->inner(out_);
      output.add_product(ops::transposed(dbranch), inner, compute_);
      ops::matmul(dbranch, output.value, dinner, Write::overwrite, compute_);
    }
    Tensor dout = mixer_->inner_backward(out_, dinner);
    out_ = Tensor();
    return dout;
  }

  /// Into dx, through projections and norm.
  void backward_before(Tensor dprojected, TensorView dx) {
    const Branch& branch = block_.branch_;
    Tensor own;
    const ConstTensorView normed = branch.normed_again(resources_, input_, branch_kept_, own);
    const Tensor dnormed({rows(), sizes_.branch.hidden}, DType::float32, compute_);
    mixer_->project_backward(std::move(dprojected), normed, dnormed);
    branch.backward(resources_, input_, branch_kept_, dnormed, dx);
  }

  const RecurrentBlock& block_;
  const RecurrentShape& sizes_;
  const DType dtype_;  // T
  const PassContext& context_;
  const Resources& resources_;
  const runtime::Stream& compute_;
  const parallel::AttentionBatch& batch_;
  const std::unique_ptr<Mixer> mixer_;
  bool again_ = false;  // from what an earlier pass received
  BranchKept branch_kept_;
  Tensor projected_;           // T[n,C]
  Tensor left_;                // T[l,C], with a convolution
  Tensor out_;                 // fp32[n,H,E]
  parallel::LinearKept kept_;  // states and transitions of this rank's runs
};

RecurrentBlock::RecurrentBlock(const RecurrentShape& shape, std::size_t mask,
                               const std::string& norm, int group, parallel::ParameterTable& table)
    : Block(group), sizes_(shape), mask_(mask), branch_(shape.branch, norm, {}, group, table) {}

void RecurrentBlock::convolve(std::int64_t width, ConvolutionNames names) {
  convolution_.emplace(width, sizes_.channels, sizes_.branch.dtype, std::move(names), group(),
                       mask_);
}

std::unique_ptr<BlockPass> RecurrentBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

void RecurrentBlock::prepare(const parallel::Attention& attention,
                             const parallel::Expression& scheme,
                             std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks,
                             Recompute recompute) const {
  if (convolution_) convolution_->prepare(attention, *masks[mask_]);
  static_cast<void>(scheme);  // softmax attention's
  const AttentionCall call = *attention_call();
  attention.prepare(*masks[mask_], attention.linear_scheme(), call.shapes, call.scoring);
  if (recompute != Recompute::none) attention.prepare_again(*masks[mask_], call.shapes);
}

parallel::LinearCall RecurrentBlock::linear_call() const {
  return {.recurrence = sizes_.recurrence};
}

std::optional<AttentionCall> RecurrentBlock::attention_call() const {
  parallel::Shapes shapes{static_cast<int>(sizes_.heads), static_cast<int>(sizes_.key_heads),
                          sizes_.dim, sizes_.value_dim, sizes_.branch.dtype};
  shapes.linear = linear_call();
  AttentionCall call{mask_, shapes, {}};
  if (convolution_) call.halo = convolution_->halo();
  return call;
}

/// Input and a number a row; the projections and the recurrence's out; what the mixer keeps.
std::int64_t RecurrentBlock::kept_bytes(std::int64_t rows) const {
  return branch_.kept_bytes(rows) +
         rows * (sizes_.channels * size_bytes(sizes_.branch.dtype) +
                 sizes_.heads * sizes_.value_dim * size_bytes(DType::float32) + mixer_bytes().kept);
}

std::int64_t RecurrentBlock::received_bytes(std::int64_t, const parallel::CallBytes& call,
                                            Recompute) const {
  return call.kept;
}

/// Forward: the normalised rows beside the projections, where the recurrence's out is not there
/// yet; the inputs of the recurrence and what the convolution gives, in the call too; the inner
/// rows beside the block's output. Backward: the inner rows beside their gradient, then that of the
/// recurrence's out, which takes the place of the latter; the inputs and their gradients, in the
/// call or beside those of the convolution's output; these beside its input's; the normalised rows,
/// their gradient and what goes through the projections.
PassingBytes RecurrentBlock::passing_bytes(std::int64_t rows,
                                           const parallel::CallBytes& call) const {
  const std::int64_t element = size_bytes(sizes_.branch.dtype), wide = size_bytes(DType::float32);
  const MixerBytes own = mixer_bytes();
  const std::int64_t values = sizes_.heads * sizes_.value_dim, out = rows * values * wide,
                     dout = rows * values * element, inner = rows * sizes_.inner * element,
                     dinner = rows * sizes_.inner * wide,
                     projected = rows * sizes_.channels * element,
                     inputs = (convolution_ ? projected : 0) + rows * own.inputs,
                     gradients = rows * gradient_elements() * wide;
  const std::int64_t forward_call = inputs + call.forward,
                     backward_call = dout + inputs + gradients + call.backward - out;
  PassingBytes bytes;
  bytes.forward =
      std::max({rows * (sizes_.branch.hidden * element + own.projecting) - out,
                inputs + rows * own.inputs_forming, forward_call,
                std::max(inner + rows * own.inner_forming, branch_.output_bytes(rows, inner))});
  bytes.backward = std::max(
      {dinner + branch_.own_bytes(rows) + inner + rows * own.inner_forming,
       dinner + dout + rows * own.inner_backward, dout + inputs + rows * own.inputs_forming - out,
       backward_call, dout + inputs + gradients + projected + rows * own.inputs_backward - out,
       (convolution_ ? 2 * projected : 0) - out,
       branch_.backward_bytes(rows) + rows * own.project_backward - out});
  bytes.exchange = std::max({forward_call, backward_call, (convolution_ ? projected : 0) - out});
  bytes.backward = std::max(bytes.backward, bytes.exchange);
  return bytes;
}

std::int64_t RecurrentBlock::gradient_elements() const {
  const attention::Recurrence& recurrence = sizes_.recurrence;
  std::int64_t elements = 2 * sizes_.key_heads * sizes_.dim + sizes_.heads * sizes_.value_dim;
  if (recurrence.decay == attention::Decay::scalar) elements += sizes_.heads;
  if (recurrence.decay == attention::Decay::vector) elements += sizes_.heads * sizes_.dim;
  if (recurrence.rule == attention::StateRule::delta) elements += sizes_.heads;
  return elements;
}

/// Matrices: 6 per weight and token. The recurrence's products with a state [E,D]: the outer
/// product that is added and the one that is read forward, their four backward; under the delta
/// rule one more and two more.
double RecurrentBlock::flops(std::int64_t tokens, std::span<const std::int64_t>) const {
  const bool delta = sizes_.recurrence.rule == attention::StateRule::delta;
  const auto states = static_cast<double>(sizes_.heads * sizes_.dim * sizes_.value_dim);
  return static_cast<double>(tokens) * (6 * weights() + (delta ? 18 : 12) * states);
}

}  // namespace longhaul::models

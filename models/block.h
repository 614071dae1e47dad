#pragma once
// What a model is a list of: a block turns the residual stream T[n,h] into the next one, forward,
// and backward by hand. T is the activation dtype, n this rank's rows. Ranks meet inside of blocks
// only.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "models/parameters.h"
#include "models/stages.h"
#include "parallel/attention.h"
#include "parallel/call_bytes.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// What a model computes with. Borrowed; every rank of the attention's communicator calls in the
/// same order.
struct Resources {
  ParameterStore& store;
  parallel::Attention& attention;
  runtime::Stream compute;  ///< all work goes there, and from there to the attention's channels
};

/// One pass's rows on this rank, in the local order of its layout: int32 [n] each. The memory must
/// stay valid until the compute stream has passed the call (tensors of the compute stream do).
struct Batch {
  runtime::ConstTensorView tokens;
  runtime::ConstTensorView labels;     ///< -1: the row has none
  runtime::ConstTensorView positions;  ///< inside the document
  /// What layers see: one for each of Model::masks(), in its order, all of one layout.
  std::vector<std::shared_ptr<const parallel::AttentionBatch>> attention;
  /// When it has data: T[n,h] <- the gradient at the input of the first block.
  runtime::TensorView embedding_gradient = {};
  /// float32 [n] of the labels, by which they weigh in the loss; without data all weigh 1.
  runtime::ConstTensorView label_weights = {};
};

/// cos and sin of this batch's positions by one Rope: [n, dims/2] fp32.
struct RopeTables {
  runtime::Tensor cosines, sines;
};

/// What backward computes again, from what.
enum class Recompute : unsigned char {
  none,       ///< nothing: everything that backward needs is kept
  selective,  ///< all from each layer's input but what ranks exchanged: what attention gave is kept
  /// All from each layer's input, softmax attention with its exchanges included. The states that
  /// entered a recurrence's runs are kept: they are small, and sweeps repeat from them.
  full
};

/// What the blocks of one pass share; it outlives their passes.
struct PassContext {
  const Resources& resources;
  const Batch& batch;
  std::vector<RopeTables> ropes;  ///< one for each of ModelParts::ropes
  RopeTables unturned;            ///< [n, 0]

  /// What turns q and k of a block with this number.
  const RopeTables& rope(std::optional<std::size_t> number) const {
    return number ? ropes.at(*number) : unturned;
  }
};

/// One pass through one block: owns what the block's backward needs. Calls in this order; each only
/// enqueues.
class BlockPass {
 public:
  virtual ~BlockPass() = default;

  /// Before activate(): what an earlier pass over the same input has handed over. The exchanges
  /// that gave it are not repeated.
  virtual void receive(std::vector<runtime::Tensor> received) { static_cast<void>(received); }
  /// Takes the block's input T[n,h] and computes all that output() and backward() need.
  virtual Stages activate(runtime::Tensor input) = 0;
  /// T[n,h].
  virtual runtime::Tensor output() const = 0;
  /// dx T[n,h]: on entry the gradient of the output, on exit that of the input. Adds the block's
  /// gradients to the store's.
  virtual Stages backward(runtime::TensorView dx) = 0;

  /// Gives the input back and ends the pass: what recomputation keeps, to begin another from.
  runtime::Tensor take_input() { return std::move(input_); }
  /// What it also keeps, for receive(); before take_input().
  virtual std::vector<runtime::Tensor> take_received(Recompute recompute) {
    static_cast<void>(recompute);
    return {};
  }

 protected:
  runtime::Tensor input_;
};

/// Most bytes that a pass through a block takes for a while, beside what it keeps.
struct PassingBytes {
  std::int64_t forward = 0;   ///< its output included
  std::int64_t backward = 0;  ///< not counting dx
  /// In an exchange, where the other passes that go through the model together are as well.
  std::int64_t exchange = 0;
};

/// What decides about the memory of a block's attention calls.
struct AttentionCall {
  std::size_t mask = 0;  ///< among Batch::attention
  parallel::Shapes shapes;
  attention::Scoring scoring;
  std::optional<parallel::HaloShape> halo = {};  ///< of a convolution in front of it
  bool operator==(const AttentionCall&) const = default;
};

class Block {
 public:
  explicit Block(int group) : group_(group) {}
  virtual ~Block() = default;

  virtual std::unique_ptr<BlockPass> begin(const PassContext& context) const = 0;
  /// Prepares the block's calls of a batch under a scheme, if it has any: masks as in
  /// Batch::attention. On any thread; without it, the first call does. `recompute`: how its passes
  /// will be.
  virtual void prepare(const parallel::Attention& attention, const parallel::Expression& scheme,
                       std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks,
                       Recompute recompute) const {
    static_cast<void>(attention), static_cast<void>(scheme), static_cast<void>(masks);
    static_cast<void>(recompute);
  }
  /// Forward and backward of `tokens` tokens, a multiply-add counted as two. areas[m]: visible
  /// (query, key) pairs of mask m over all sequences.
  virtual double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const = 0;

  /// What a pass over n rows holds from activate() to its end, its input included; beside what its
  /// attention call keeps (CallBytes::kept).
  virtual std::int64_t kept_bytes(std::int64_t rows) const = 0;
  /// Of these, what take_received() hands over, and what its call keeps.
  virtual std::int64_t received_bytes(std::int64_t rows, const parallel::CallBytes& call,
                                      Recompute recompute) const {
    static_cast<void>(rows), static_cast<void>(call), static_cast<void>(recompute);
    return 0;
  }
  /// What it takes beside that for a while. `call`: of its attention_call(), zeros where it has
  /// none.
  virtual PassingBytes passing_bytes(std::int64_t rows, const parallel::CallBytes& call) const = 0;
  /// Its attention call; none where it has none. See call_bytes().
  virtual std::optional<AttentionCall> attention_call() const { return std::nullopt; }

  /// Of its parameters. Neighbours that share one are a layer: recomputed together, their gradients
  /// complete together.
  int group() const { return group_; }

 private:
  int group_;
};

}  // namespace longhaul::models

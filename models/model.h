#pragma once
// A model: embedding, blocks, head. Explicit forward and backward on this rank's rows.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/block.h"
#include "models/head.h"
#include "models/layer_types.h"
#include "models/parameters.h"
#include "models/rope.h"
#include "runtime/tensor.h"

namespace longhaul::models {

struct ModelOptions {
  Recompute recompute = Recompute::none;
  std::int64_t head_chunk_rows = 512;  ///< rows of logits that exist at a time
};

/// What a family's file turns a configuration into. Parameters of group 0 are the embedding's, of
/// the last group the head's.
struct ModelParts {
  parallel::ParameterTable table;
  std::string embedding;  ///< name of its parameter, [V,h]
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<MaskKind> masks;  ///< what blocks number
  HeadOptions head;
  std::int64_t hidden = 0;
  std::vector<Rope> ropes;                         ///< what blocks number
  double embedding_multiplier = 1;                 ///< of the embedding's rows (Granite)
  runtime::DType dtype = runtime::DType::float32;  ///< of activations
};

struct PassOptions {
  /// 1 / the global sum of label weights of the step, all passes together.
  double loss_scale = 1;
  /// Called on the host, in reverse order of the table, as soon as the work that completes a
  /// group's gradients is enqueued on the compute stream. Given for the last passes of a step, else
  /// empty.
  std::function<void(parallel::ElementRange)> on_gradients;
};

/// A call of softmax attention in a pass.
struct PassCall {
  std::size_t call = 0;  ///< among Model::attention_calls()
  parallel::Direction direction = parallel::Direction::forward;
  bool kept = false;  ///< forward: what it saves is there until the backward of the same block
  bool operator==(const PassCall&) const = default;
};

struct Evaluation {
  runtime::Tensor loss_sum;     ///< float64[1], by the labels' weights
  runtime::Tensor row_loss;     ///< float32[n], unweighted; 0 without a label
  runtime::Tensor row_correct;  ///< uint8[n], 1 where the largest logit is the label's
};

/// Holds no weights and no memory: these come with the resources of a call, whose store was built
/// from table(). Calls only enqueue on the compute stream; results are readable after it. A rank
/// may hold any number of rows (0 too).
class Model {
 public:
  Model(ModelParts parts, const ModelOptions& options);

  const parallel::ParameterTable& table() const { return parts_.table; }
  /// The masks that a batch brings.
  const std::vector<MaskKind>& masks() const { return parts_.masks; }

  /// Model FLOPs of a step, for MFU: forward and backward, a multiply-add counted as two.
  ///   matrices:  6 * tokens * (weights of all matrices but the embedding)
  ///   attention: 12 * D per head and visible (query, key) pair of a layer
  /// areas[m]: visible pairs of mask m over all sequences of the step. The embedding lookup, norms
  /// and other element-wise work count nothing; nor does anything computed twice (recomputation,
  /// and the scores that a blocked backward computes again).
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const;

  /// Prepares the calls of a batch under a scheme, as many masks as masks(). On any thread, also
  /// while others run; without it, the first call of each block does.
  void prepare(const parallel::Attention& attention, const parallel::Expression& scheme,
               std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const;

  /// What one pass over n rows keeps at most of its layers, for their backward, beside what
  /// attention calls keep (CallBytes::kept). With full recomputation: each layer's input, and all
  /// of one layer.
  std::int64_t activation_bytes(std::int64_t rows) const;

  /// The attention calls of its blocks, each once.
  const std::vector<AttentionCall>& attention_calls() const { return calls_; }

  /// The calls of softmax attention that one pass makes, in its order: of forward_backward(), those
  /// of recomputation among them; of evaluate() and logits().
  std::vector<PassCall> training_calls() const;
  std::vector<PassCall> evaluation_calls() const;

  /// Most bytes of tensors that `together` passes over n rows each take in forward_backward(), what
  /// they keep included; parameters and gradients are not. calls[i]: of attention_calls()[i].
  std::int64_t pass_bytes(std::int64_t rows, std::span<const parallel::CallBytes> calls,
                          std::int64_t together) const;

  /// Adds the gradients of loss_scale * weighted sum of token losses of every batch to the store's,
  /// after which each is written (ParameterStore::drop_gradients()), be it with zeros;
  /// returns each batch's unscaled sum over this rank's rows, float64[1]. The passes go through the
  /// model together, stage by stage, the first before the second at each: an exchange of one hides
  /// behind the work of the other. Each adds to a gradient as if they came one after the other, but
  /// to the weights of a tied embedding, which both add to as a head before either does as an
  /// embedding. Memory: activation_bytes() of each of the passes.
  [[nodiscard]] std::vector<runtime::Tensor> forward_backward(const Resources& resources,
                                                              std::span<const Batch> batches,
                                                              const PassOptions& options) const;

  /// Forward only. Memory: one layer's activations at a time.
  [[nodiscard]] Evaluation evaluate(const Resources& resources, const Batch& batch) const;

  /// fp32 logits [end - begin, V] of local rows [begin, end). Labels are not read.
  [[nodiscard]] runtime::Tensor logits(const Resources& resources, const Batch& batch,
                                       std::int64_t begin, std::int64_t end) const;

 private:
  using BlockPasses = std::vector<std::unique_ptr<BlockPass>>;
  /// Blocks [begin, end), whose parameters are one group.
  struct Layer {
    std::size_t begin = 0, end = 0;
    int group = 0;
  };

  /// Of a block's call among `calls`; zeros where it has none.
  parallel::CallBytes call_of(std::size_t block, std::span<const parallel::CallBytes> calls) const;
  /// Of a layer's blocks, in their order.
  std::vector<PassCall> forward_calls(const Layer& layer, bool kept) const;
  void check(const Resources& resources, const Batch& batch) const;
  PassContext context(const Resources& resources, const Batch& batch) const;
  runtime::Tensor embed(const Resources& resources, const Batch& batch) const;
  /// Rows of the embedding, or their gradients, by its multiplier.
  void multiply_embedding(runtime::TensorView rows, const runtime::Stream& compute) const;
  /// `received`: by block, what earlier passes have handed over; nullptr: nothing.
  Stages activate(const PassContext& context, const Layer& layer, runtime::Tensor input,
                  BlockPasses& passes, std::vector<std::vector<runtime::Tensor>>* received) const;
  Stages forward_backward(const Resources& resources, const Batch& batch,
                          const PassOptions& options, bool last, runtime::Tensor& loss_sum) const;
  runtime::Tensor forward(const Resources& resources, const Batch& batch) const;

  ModelParts parts_;
  Recompute recompute_;
  Head head_;
  std::vector<Layer> layers_;
  std::vector<AttentionCall> calls_;
  std::vector<std::optional<std::size_t>> call_of_block_;  // among them
};

}  // namespace longhaul::models

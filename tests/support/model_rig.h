#pragma once
// A small model on one or more loopback ranks, for tests.

#include <functional>
#include <memory>

#include "models/family.h"
#include "models/model.h"
#include "parallel/layout.h"
#include "tests/support/llama_oracle.h"

namespace longhaul::test {

/// Odd sizes, grouped heads, H * D different from the hidden size.
models::ModelConfig small_config(bool tied = false, runtime::DType dtype = runtime::DType::float32);

/// The same with three layers, of which the outer ones slide.
models::ModelConfig sliding_config(std::int64_t window);

/// `tokens` tokens in documents of these lengths; labels are the next tokens, none at a document's
/// end.
OracleBatch document_batch(const models::ModelConfig& config,
                           const std::vector<std::int64_t>& lengths, unsigned seed);

/// What one rank owns.
struct Rig {
  Rig(models::Model made, runtime::DType dtype, std::unique_ptr<runtime::Communicator> communicator,
      int threads = 1);

  /// Values far enough from zero that every path of the model matters; the same on every rank. With
  /// bfloat16 they are exact in it.
  void set_parameters();
  NamedValues parameters() const;
  NamedValues gradients() const;
  /// This rank's rows of a batch; they live as long as the rig.
  models::Batch use(const OracleBatch& batch,
                    parallel::LayoutKind kind = parallel::LayoutKind::zigzag);

  /// The model's, of one batch.
  [[nodiscard]] runtime::Tensor forward_backward(const models::Batch& batch,
                                                 const models::PassOptions& options);
  [[nodiscard]] models::Evaluation evaluate(const models::Batch& batch);
  [[nodiscard]] runtime::Tensor logits(const models::Batch& batch, std::int64_t begin,
                                       std::int64_t end);

  int rank, ranks;
  runtime::Stream stream;
  models::Model model;
  models::ParameterStore store;
  parallel::Attention attention;
  models::Resources resources;

 private:
  std::vector<runtime::Tensor> batch_tensors_;
};

/// Runs body(rig) on every rank; `make` makes its model, of activations `dtype`.
void with_rigs(int ranks, const std::function<models::Model()>& make, runtime::DType dtype,
               const std::function<void(Rig&)>& body, int threads = 1);
void with_rigs(int ranks, const models::ModelConfig& config, const models::ModelOptions& options,
               const std::function<void(Rig&)>& body, int threads = 1);

/// What products of so many rows of float32 take for a while on one thread, at most: pass_bytes()
/// leaves it out.
std::int64_t product_bytes(const models::Model& model, std::int64_t rows);

}  // namespace longhaul::test

#pragma once
// The part of a rank without rows or parameters in passes through a model: a dedicated attention
// server's (parallel::AttentionServers).

#include <memory>
#include <span>
#include <vector>

#include "models/model.h"

namespace longhaul::models {

/// A pass as such a rank sees it: of each of Model::masks() the calls, as in Batch::attention.
using ServedBatch = std::vector<std::shared_ptr<const parallel::AttentionBatch>>;

/// Takes part in the softmax attention of Model::forward_backward() of as many batches, with
/// tensors of no rows, in the order in which the other ranks of the attention's axis make those
/// calls, the passes in turns as there. Recurrences and convolutions exchange nothing with a rank
/// without rows. Only enqueues, on `compute` and the attention's channels.
void serve_training(const Model& model, parallel::Attention& attention,
                    std::span<const ServedBatch> batches, const runtime::Stream& compute);

/// The same of Model::evaluate().
void serve_evaluation(const Model& model, parallel::Attention& attention, const ServedBatch& batch,
                      const runtime::Stream& compute);

}  // namespace longhaul::models

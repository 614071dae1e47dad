#include "launch/rehearsal.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/ops/host_copy.h"

namespace longhaul::launch {

using runtime::DType;
using runtime::Tensor;

namespace {

constexpr const char* kScheme = "ring";  // of one rank: nothing is sent

Tensor uploaded(std::vector<std::int32_t> values, const runtime::Stream& compute) {
  Tensor tensor({std::ssize(values)}, DType::int32, compute);
  runtime::ops::upload(std::move(values), tensor, compute);
  return tensor;
}

}  // namespace

Rehearsal::Rehearsal(const models::Model& model, models::ParameterStore& store,
                     std::unique_ptr<runtime::Communicator> alone, const runtime::Stream& compute)
    : model_(model),
      store_(store),
      compute_(compute),
      attention_({.scheme = parallel::parse_scheme(kScheme)}, std::move(alone), compute) {}

void Rehearsal::before(const LocalBatch& batch, std::int64_t together,
                       const parallel::Attention& attention) {
  const std::int64_t rows = std::ssize(batch.rows.tokens);
  if (rows == 0 || !rows_.insert(rows).second) return;
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows));
  std::iota(numbers.begin(), numbers.end(), 0);
  const Tensor tokens = uploaded(batch.rows.tokens, compute_),
               labels = uploaded(batch.rows.labels, compute_),
               positions = uploaded(std::move(numbers), compute_);
  models::Batch pass{tokens, labels, positions, {}};
  for (std::size_t mask = 0; mask < model_.masks().size(); ++mask) {
    pass.attention.push_back(
        attention_.batch(attention::Mask::causal(rows).within(-63, 0),
                         parallel::Layout(parallel::LayoutKind::contiguous, rows, 1, 1)));
  }
  model_.prepare(attention_, parallel::parse_scheme(kScheme), pass.attention);
  std::int64_t arena = 0;
  for (const auto& calls : batch.attention) arena = std::max(arena, attention.arena_bytes(*calls));
  const runtime::Buffer arenas = compute_.allocate(together * arena);
  const std::vector<models::Batch> passes_together(static_cast<std::size_t>(together), pass);
  // A product that overwrites a gradient may be another kernel than one that adds to it.
  store_.drop_gradients();
  for (int passes = 0; passes < 2; ++passes) {
    static_cast<void>(model_.forward_backward({store_, attention_, compute_}, passes_together, {}));
  }
  compute_.synchronize(runtime::deadline_in(3600));
}

}  // namespace longhaul::launch

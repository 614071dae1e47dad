#include "launch/rehearsal.h"

#include <numeric>

#include "parallel/attention.h"
#include "runtime/ops/host_copy.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::Tensor;

Tensor uploaded(std::vector<std::int32_t> values, const runtime::Stream& compute) {
  Tensor tensor({std::ssize(values)}, DType::int32, compute);
  runtime::ops::upload(std::move(values), tensor, compute);
  return tensor;
}

}  // namespace

void rehearse(const models::Model& model, models::ParameterStore& store,
              std::unique_ptr<runtime::Communicator> alone, const LocalBatch& batch,
              const runtime::Stream& compute) {
  const std::int64_t rows = std::ssize(batch.rows.tokens);
  if (rows == 0) return;
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows));
  std::iota(numbers.begin(), numbers.end(), 0);
  const Tensor tokens = uploaded(batch.rows.tokens, compute),
               labels = uploaded(batch.rows.labels, compute),
               positions = uploaded(std::move(numbers), compute);

  const auto scheme = parallel::parse_scheme("ring");
  parallel::Attention attention({.scheme = scheme}, std::move(alone), compute);
  models::Batch pass{tokens, labels, positions, {}};
  for (std::size_t mask = 0; mask < model.masks().size(); ++mask) {
    pass.attention.push_back(
        attention.batch(attention::Mask::causal(rows),
                        parallel::Layout(parallel::LayoutKind::contiguous, rows, 1, 1)));
  }
  model.prepare(attention, scheme, pass.attention);
  static_cast<void>(model.forward_backward({store, attention, compute}, std::span(&pass, 1), {}));
  compute.synchronize(runtime::deadline_in(3600));
}

}  // namespace longhaul::launch

#include "launch/kernels.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/batches.h"
#include "launch/model.h"
#include "launch/schemes.h"
#include "parallel/kernel_use.h"
#include "runtime/counted.h"

namespace longhaul::launch {
namespace {

double percent(std::int64_t part, std::int64_t all) {
  return all == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(all);
}

std::string text_of(const parallel::KernelUse::Paths& paths) {
  const attention::KernelShares& pairs = paths.pairs;
  if (pairs.total() == 0) return "nothing is visible";
  std::string text;
  if (pairs.exact < pairs.total()) {
    text = fmt::format("cuDNN {:.1f}% of the pairs (dense {:.1f}%, ragged {:.1f}%)",
                       100 * pairs.by_cudnn(), percent(pairs.dense, pairs.total()),
                       percent(pairs.ragged, pairs.total()));
  }
  for (const auto& [why, exact] : paths.why_exact) {
    text += fmt::format("{}exact kernels {:.1f}%: {}", text.empty() ? "" : ", ",
                        percent(exact, pairs.total()), why);
  }
  return text;
}

/// Some ranks, the ends among them.
std::vector<int> some_of(int ranks) {
  constexpr int kTried = 16;
  const int tried = std::min(ranks, kTried);
  std::vector<int> some;
  for (int i = 0; i < tried; ++i)
    some.push_back(tried == 1 ? 0 : static_cast<int>(std::int64_t{i} * (ranks - 1) / (tried - 1)));
  return some;
}

}  // namespace

std::string kernels_text(const MemoryQuestion& question, attention::Kernels kernels,
                         bool deterministic) {
  const TrainConfig& config = question.config;
  const models::Model model = make_model(config, question.vocabulary);
  const AttentionAxis axis = attention_axis(config);
  const BatchShape shape = batch_shape(config, model.masks(), axis, 0);
  std::vector<std::int64_t> numbers;
  for (std::int64_t i = 0; i < axis.sequences; ++i) numbers.push_back(i);
  const LocalBatch batch = make_local_batch(question.sequences, numbers, shape);
  const attention::BlockPlace place{{runtime::DeviceKind::cuda, 0}, 1, kernels, deterministic};
  std::string text;
  for (const models::AttentionCall& call : model.attention_calls()) {
    if (call.shapes.linear) continue;
    for (const parallel::Expression& scheme : schemes_of(config, call)) {
      const parallel::SchemeInputs inputs{
          batch.masks[call.mask], batch.layout, call.shapes, {}, {}, scheme, axis.servers};
      parallel::KernelUse use;
      for (const int rank : some_of(axis.ranks()))
        use += parallel::kernel_use(inputs, rank, call.scoring, place);
      text += fmt::format("{}{}: forward {}; backward {}", text.empty() ? "" : "\n", scheme.text(),
                          text_of(use.forward), text_of(use.backward));
    }
  }
  return text.empty() ? "no layer has softmax attention" : text;
}

}  // namespace longhaul::launch

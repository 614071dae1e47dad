#include "launch/batches.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "attention/named_masks.h"
#include "runtime/error.h"

namespace longhaul::launch {

namespace {

/// The part of a token axis's runs that lies in each of its sequences, by index there.
std::vector<std::vector<runtime::Run>> by_sequence(std::span<const runtime::Run> runs,
                                                   std::int64_t seq_len, std::size_t sequences) {
  std::vector<std::vector<runtime::Run>> parts(sequences);
  for (const runtime::Run& run : runs) {
    for (std::int64_t done = 0; done < run.count;) {
      const std::int64_t sequence = run[done] / seq_len, first = run[done] % seq_len;
      const std::int64_t inside = (seq_len - 1 - first) / run.stride + 1;
      const std::int64_t count = std::min(run.count - done, inside);
      parts[static_cast<std::size_t>(sequence)].push_back({first, count, run.stride});
      done += count;
    }
  }
  return parts;
}

}  // namespace

attention::Mask sequence_mask(const DataConfig& data, const runtime::PackedDocuments& documents,
                              const models::MaskKind& kind) {
  attention::MaskParameters parameters;
  parameters.numbers = {data.window, data.prefix, data.global, data.block, "data."};
  parameters.documents = documents.offsets;
  parameters.tokens_before = documents.tokens_before;
  // A mask that takes a window knows best what is near: an answer follows its question.
  const bool takes_window = attention::mask_rule(data.mask).takes(attention::MaskInput::window);
  if (kind.window && takes_window)
    parameters.numbers.window = std::min(*kind.window, data.window.value_or(*kind.window));
  const attention::Mask mask =
      attention::make_mask(data.mask, parameters, documents.offsets.back()).of(0);  // of all heads
  return takes_window ? mask : kind.of(mask);
}

std::string mask_text(const DataConfig& data) {
  std::string numbers;
  for (const auto& [name, value] :
       {std::pair("window", data.window), std::pair("prefix", data.prefix),
        std::pair("global", data.global), std::pair("block", data.block)}) {
    if (value) numbers += runtime::concat(numbers.empty() ? "" : ", ", name, " ", *value);
  }
  return numbers.empty() ? data.mask : data.mask + " (" + numbers + ")";
}

BatchShape batch_shape(const TrainConfig& config, std::vector<models::MaskKind> kinds,
                       const AttentionAxis& axis, int rank) {
  return {config.data,
          std::move(kinds),
          parallel::layout_from_name(config.parallelism.context_parallel_layout),
          axis.ranks(),
          rank,
          axis.dedicated};
}

PlannedBatch plan_batch(const runtime::SequenceSource& source,
                        std::span<const std::int64_t> numbers, const BatchShape& shape) {
  LONGHAUL_CHECK(!numbers.empty(), "a batch of no sequences");
  std::vector<runtime::PackedDocuments> documents;
  for (const std::int64_t number : numbers) {
    documents.push_back(source.documents(number));
    LONGHAUL_CHECK(documents.back().offsets.back() == documents[0].offsets.back(), "a sequence of ",
                   documents.back().offsets.back(), " tokens beside one of ",
                   documents[0].offsets.back());
  }
  std::vector<attention::Mask> masks;
  for (const models::MaskKind& kind : shape.kinds) {
    std::vector<attention::Mask> of_sequences;
    for (const runtime::PackedDocuments& packed : documents)
      of_sequences.push_back(sequence_mask(shape.data, packed, kind));
    masks.push_back(attention::Mask::concatenated(of_sequences));
  }
  auto layout = parallel::Layout::make(shape.layout, masks_of_layers(masks, shape.kinds),
                                       std::ssize(numbers), shape.ranks - shape.without_rows);
  if (shape.without_rows > 0) layout = layout.with_empty_ranks(shape.without_rows);
  return {std::move(masks), std::move(layout)};
}

LocalBatch make_local_batch(const runtime::SequenceSource& source,
                            std::span<const std::int64_t> numbers, const BatchShape& shape) {
  PlannedBatch plan = plan_batch(source, numbers, shape);
  const parallel::Layout& layout = plan.layout;
  // A rank's tokens rise, so its rows come sequence by sequence.
  runtime::Rows rows;
  for (auto* values : {&rows.tokens, &rows.labels, &rows.positions})
    values->reserve(static_cast<std::size_t>(layout.rows(shape.rank)));
  const auto parts = by_sequence(layout.runs(shape.rank), layout.seq_len(), numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) source.read(numbers[i], parts[i], rows);
  LONGHAUL_CHECK(std::ssize(rows.tokens) == layout.rows(shape.rank), rows.tokens.size(),
                 " rows read of ", layout.rows(shape.rank));
  LONGHAUL_CHECK(rows.label_weights.empty() || rows.label_weights.size() == rows.labels.size(),
                 rows.label_weights.size(), " label weights of ", rows.labels.size(), " rows");
  LocalBatch batch{std::move(plan.masks), std::move(plan.layout), std::move(rows)};
  for (std::size_t row = 0; row < batch.rows.labels.size(); ++row) {
    if (batch.rows.labels[row] < 0) continue;
    const double weight =
        batch.rows.label_weights.empty() ? 1.0 : static_cast<double>(batch.rows.label_weights[row]);
    batch.local_labels += weight > 0;
    batch.local_weight += weight;
  }
  return batch;
}

}  // namespace longhaul::launch

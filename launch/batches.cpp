#include "launch/batches.h"

#include "attention/named_masks.h"
#include "runtime/error.h"

namespace longhaul::launch {

attention::Mask sequence_mask(const DataConfig& data, const runtime::Sequence& sequence) {
  attention::MaskParameters parameters;
  parameters.numbers = {data.window, data.prefix, data.global, data.block, "data."};
  parameters.documents = sequence.documents;
  const auto tokens = static_cast<std::int64_t>(sequence.tokens.size());
  return attention::make_mask(data.mask, parameters, tokens).of(0);  // one mask for all heads
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

LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences,
                            const BatchShape& shape) {
  LONGHAUL_CHECK(!sequences.empty(), "a batch of no sequences");
  const std::size_t seq_len = sequences[0].tokens.size();
  std::vector<attention::Mask> masks;
  for (const runtime::Sequence& sequence : sequences) {
    LONGHAUL_CHECK(sequence.tokens.size() == seq_len, "a sequence of ", sequence.tokens.size(),
                   " tokens beside one of ", seq_len);
    masks.push_back(sequence_mask(shape.data, sequence));
  }
  const attention::Mask mask = attention::Mask::concatenated(masks);
  masks.clear();
  for (const models::MaskKind& kind : shape.kinds) masks.push_back(kind.of(mask));
  auto layout = parallel::Layout::make(shape.layout, masks_of_layers(masks, shape.kinds),
                                       std::ssize(sequences), shape.ranks);
  LocalBatch batch{std::move(masks), std::move(layout), {}, {}, {}};
  for (const std::int64_t token : batch.layout.tokens_of(shape.rank)) {
    const runtime::Sequence& sequence = sequences[static_cast<std::size_t>(token) / seq_len];
    const std::size_t at = static_cast<std::size_t>(token) % seq_len;
    batch.tokens.push_back(sequence.tokens[at]);
    batch.labels.push_back(sequence.labels[at]);
    batch.positions.push_back(sequence.positions[at]);
    batch.local_labels += sequence.labels[at] >= 0 ? 1 : 0;
  }
  return batch;
}

}  // namespace longhaul::launch

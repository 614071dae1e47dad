#include "launch/batches.h"

#include "attention/named_masks.h"
#include "runtime/error.h"

namespace longhaul::launch {

attention::Mask sequence_mask(const runtime::DataConfig& data, const runtime::Sequence& sequence) {
  attention::MaskParameters parameters;
  parameters.numbers = {data.window, data.prefix, data.global, data.block, "data."};
  parameters.documents = sequence.documents;
  const auto tokens = static_cast<std::int64_t>(sequence.tokens.size());
  return attention::make_mask(data.mask, parameters, tokens).of(0);  // one mask for all heads
}

std::string mask_text(const runtime::DataConfig& data) {
  std::string numbers;
  for (const auto& [name, value] :
       {std::pair("window", data.window), std::pair("prefix", data.prefix),
        std::pair("global", data.global), std::pair("block", data.block)}) {
    if (value) numbers += runtime::concat(numbers.empty() ? "" : ", ", name, " ", *value);
  }
  return numbers.empty() ? data.mask : data.mask + " (" + numbers + ")";
}

LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences,
                            const runtime::DataConfig& data, const parallel::Layout& layout,
                            int rank) {
  LONGHAUL_CHECK(static_cast<std::int64_t>(sequences.size()) == layout.batch(), sequences.size(),
                 " sequences for a layout of ", layout.batch());
  std::vector<attention::Mask> masks;
  for (const runtime::Sequence& sequence : sequences) {
    LONGHAUL_CHECK(static_cast<std::int64_t>(sequence.tokens.size()) == layout.seq_len(),
                   "a sequence of ", sequence.tokens.size(), " tokens; expected ",
                   layout.seq_len());
    masks.push_back(sequence_mask(data, sequence));
  }
  LocalBatch batch;
  batch.mask = attention::Mask::concatenated(masks);
  for (const std::int64_t token : layout.tokens_of(rank)) {
    const runtime::Sequence& sequence =
        sequences[static_cast<std::size_t>(token / layout.seq_len())];
    const auto at = static_cast<std::size_t>(token % layout.seq_len());
    batch.tokens.push_back(sequence.tokens[at]);
    batch.labels.push_back(sequence.labels[at]);
    batch.positions.push_back(sequence.positions[at]);
    batch.local_labels += sequence.labels[at] >= 0 ? 1 : 0;
  }
  return batch;
}

}  // namespace longhaul::launch

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

LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences, const DataConfig& data,
                            parallel::LayoutKind layout_kind, int ranks, int rank) {
  LONGHAUL_CHECK(!sequences.empty(), "a batch of no sequences");
  const std::size_t seq_len = sequences[0].tokens.size();
  std::vector<attention::Mask> masks;
  for (const runtime::Sequence& sequence : sequences) {
    LONGHAUL_CHECK(sequence.tokens.size() == seq_len, "a sequence of ", sequence.tokens.size(),
                   " tokens beside one of ", seq_len);
    masks.push_back(sequence_mask(data, sequence));
  }
  attention::Mask mask = attention::Mask::concatenated(masks);
  auto layout =
      parallel::Layout::make(layout_kind, mask, static_cast<std::int64_t>(sequences.size()), ranks);
  LocalBatch batch{std::move(mask), std::move(layout), {}, {}, {}};
  for (const std::int64_t token : batch.layout.tokens_of(rank)) {
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

#include "launch/batches.h"

#include "runtime/error.h"

namespace longhaul::launch {

MaskKind mask_from_name(const std::string& text) {
  if (text == "documents") return MaskKind::documents;
  if (text == "causal") return MaskKind::causal;
  runtime::fail(runtime::ExitCode::config, "unknown mask '", text,
                "'; expected documents or causal");
}

LocalBatch make_local_batch(const std::vector<runtime::Sequence>& sequences, MaskKind mask_kind,
                            parallel::LayoutKind layout_kind, int ranks, int rank) {
  LONGHAUL_CHECK(!sequences.empty(), "a batch of no sequences");
  const std::size_t seq_len = sequences[0].tokens.size();
  std::vector<attention::Mask> masks;
  for (const runtime::Sequence& sequence : sequences) {
    LONGHAUL_CHECK(sequence.tokens.size() == seq_len, "a sequence of ", sequence.tokens.size(),
                   " tokens beside one of ", seq_len);
    masks.push_back(mask_kind == MaskKind::documents
                        ? attention::Mask::documents(sequence.documents)
                        : attention::Mask::causal(static_cast<std::int64_t>(seq_len)));
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

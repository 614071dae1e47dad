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
                            const parallel::Layout& layout, int rank) {
  LONGHAUL_CHECK(static_cast<std::int64_t>(sequences.size()) == layout.batch(), sequences.size(),
                 " sequences for a layout of ", layout.batch());
  std::vector<attention::Mask> masks;
  for (const runtime::Sequence& sequence : sequences) {
    LONGHAUL_CHECK(static_cast<std::int64_t>(sequence.tokens.size()) == layout.seq_len(),
                   "a sequence of ", sequence.tokens.size(), " tokens; expected ",
                   layout.seq_len());
    masks.push_back(mask_kind == MaskKind::documents
                        ? attention::Mask::documents(sequence.documents)
                        : attention::Mask::causal(layout.seq_len()));
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

#pragma once
// The held-out corpus of [validation], and which sequences of it a validation takes.

#include <memory>

#include "launch/config.h"
#include "runtime/io/corpus.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// The corpus's sequences in its order, numbered and labelled as training's: number n begins at
/// token n * seq_len. The last one is filled up from the corpus's beginning, as in training, but
/// what fills it has no label here: every token counts once.
class ValidationData final : public runtime::SequenceSource {
 public:
  /// `training`: whose rules and length the sequences have. Throws Error(config) if the corpus
  /// holds fewer tokens than a sequence.
  ValidationData(runtime::Corpus corpus, const runtime::Sequences& training,
                 const TrainConfig& config);

  const runtime::Corpus& corpus() const { return corpus_; }
  /// Of one validation: numbers 0 to sequences() - 1, and the corpus's tokens in them.
  std::int64_t sequences() const { return count_; }
  std::int64_t tokens() const;
  /// Whether a validation follows this step: every validation.freq steps, and after the last.
  bool due(std::int64_t step) const;
  /// "every 10 steps and after the last: 120 sequences, 491,520 of 1,000,000 tokens of FILE".
  std::string text() const;

  runtime::PackedDocuments documents(std::int64_t number) const override;
  void read(std::int64_t number, std::span<const runtime::Run> runs,
            runtime::Rows& rows) const override;

 private:
  const ValidationConfig config_;
  const std::int64_t seq_len_, last_step_;
  const runtime::Corpus corpus_;
  const runtime::Sequences sequences_;
  const std::int64_t count_;
};

/// What [validation] asks for; nullptr when it is not enabled. `training`: a corpus that is trained
/// on, and `sequences` of it. Throws Error(data) for a corpus that
/// is none, Error(config) for one of another vocabulary or tokenizer than training's, one shorter
/// than a sequence, or validation.steps that it does not hold.
std::shared_ptr<const ValidationData> open_validation(TrainDraft& draft,
                                                      const runtime::CorpusInfo& training,
                                                      const runtime::Sequences& sequences);

}  // namespace longhaul::launch

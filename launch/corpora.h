#pragma once
// The corpora that a run trains on.

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/config.h"
#include "launch/metrics.h"
#include "runtime/io/corpus.h"
#include "runtime/io/mixture.h"

namespace longhaul::launch {

/// The rule on keys: one corpus, or a mixture whose corpora differ and have shares that a run can
/// keep to.
void check_corpora(TrainDraft& draft);

/// What [data] names, open: one corpus, or several of one tokenizer in shares.
class TrainingCorpora {
 public:
  /// Throws Error(data) for a file that is no corpus or holds no token; Error(config) for keys that
  /// contradict the corpora, and for corpora of different tokenizers or vocabularies.
  explicit TrainingCorpora(TrainDraft& draft);

  std::span<const runtime::Corpus> all() const { return corpora_; }
  const runtime::Mixture& mixture() const { return mixture_; }
  /// Tokenizer and vocabulary are those of all.
  const runtime::CorpusInfo& first() const { return corpora_.front().info(); }
  std::int64_t tokens() const;  ///< of all together
  /// The corpus's digest; of several, of them and their shares.
  std::string digest() const;
  /// Nats; of several the mean by shares: the loss of a model that knows only the frequencies of
  /// the corpus at hand. None where one of them stores none.
  std::optional<double> unigram_entropy() const;
  /// Element types of the label weights that there are, comma between; empty for none.
  std::string label_weights() const;

 private:
  std::vector<runtime::Corpus> corpora_;
  runtime::Mixture mixture_;
};

/// The run's sequences. The corpora must outlive them.
runtime::MixedSequences make_sequences(const TrainConfig& config, const TrainingCorpora& corpora);

/// What the start and metrics.jsonl say of each.
std::vector<CorpusPart> corpus_parts(const TrainConfig& config, const TrainingCorpora& corpora,
                                     const runtime::MixedSequences& sequences);

/// A tokenizer's name as a corpus stores it, "sentencepiece:FILE:DIGEST", without the file's name,
/// which does not matter. Two corpora of equal identity may still differ in what no corpus stores:
/// which BOS and EOS were put around their documents, and, where both are "unknown", the tokenizer.
std::string tokenizer_identity(const std::string& name);

}  // namespace longhaul::launch

#include "launch/corpora.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/row_rules.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

std::string weights_of(const runtime::CorpusInfo& info) {
  return info.label_weights ? runtime::hdf5::name(*info.label_weights) : "";
}

/// Adds what is wrong with the corpus of this number to the draft.
void check_corpus(TrainDraft& draft, std::size_t number, const runtime::CorpusInfo& info,
                  const runtime::CorpusInfo& first) {
  const TrainConfig& config = draft.config;
  const std::string path = info.path.string();
  if (config.model.vocab_size.value_or(info.vocabulary_size) < info.vocabulary_size) {
    draft.key_problem("model.vocab_size", fmt::format("{}", *config.model.vocab_size),
                      fmt::format("expected at least {}, the vocabulary of {}; raise it, or leave "
                                  "it out to take the corpus's",
                                  info.vocabulary_size, path));
  }
  if (info.tokens == 0)
    runtime::fail(runtime::ExitCode::data, path, ": holds no token; tokenize text into it");
  if (config.training.seq_len > info.tokens) {
    draft.key_problem("training.seq_len", fmt::format("{}", config.training.seq_len),
                      fmt::format("expected at most {}, the tokens of {}", info.tokens, path));
  }
  if (info.vocabulary_size != first.vocabulary_size ||
      tokenizer_identity(info.tokenizer) != tokenizer_identity(first.tokenizer)) {
    draft.element_problem(
        "data.corpora", number,
        fmt::format("its tokens are of tokenizer {} with {} ids, those of {} of {} with {}; a "
                    "mixture is of one tokenizer",
                    info.tokenizer, info.vocabulary_size, first.path.string(), first.tokenizer,
                    first.vocabulary_size));
  }
}

std::vector<runtime::Corpus> open_all(TrainDraft& draft) {
  std::vector<runtime::Corpus> corpora;
  for (const CorpusShare& share : corpora_of(draft.config.data)) {
    corpora.push_back(runtime::Corpus::open(share.path));
    check_corpus(draft, corpora.size() - 1, corpora.back().info(), corpora.front().info());
  }
  draft.check();
  return corpora;
}

runtime::Mixture mixture_of(const TrainConfig& config) {
  std::vector<double> weights;
  for (const CorpusShare& share : corpora_of(config.data)) weights.push_back(share.weight);
  return {weights, static_cast<std::uint64_t>(config.debug.seed)};
}

}  // namespace

void check_corpora(TrainDraft& draft) {
  constexpr const char* kCorpora = "data.corpora";
  if (!draft.good({"data.corpus", kCorpora})) return;
  if (!draft.is_set(kCorpora)) {
    if (draft.is_absent(kCorpora) && draft.is_absent("data.corpus")) draft.missing("data.corpus");
    return;
  }
  const std::string value = runtime::describe_value(*draft.given(kCorpora));
  const std::vector<CorpusShare>& corpora = draft.config.data.corpora.rows;
  if (draft.config.data.corpus)
    draft.key_problem(kCorpora, value, "data.corpus is given too; leave one of them out");
  if (corpora.empty()) draft.key_problem(kCorpora, value, "expected at least one corpus");
  double sum = 0;
  for (const CorpusShare& corpus : corpora) sum += corpus.weight;
  for (std::size_t i = 0; i < corpora.size(); ++i) {
    if (corpora[i].weight / sum < runtime::kLeastShare) {
      draft.element_problem(
          kCorpora, i,
          fmt::format("its share is {:.1e} of the sequences; expected at least {:.0e}",
                      corpora[i].weight / sum, runtime::kLeastShare));
    }
    if (std::ranges::count(corpora.begin(), corpora.begin() + static_cast<std::ptrdiff_t>(i),
                           corpora[i].path, &CorpusShare::path) != 0)
      draft.element_problem(kCorpora, i, "this path is there twice; add its weights up");
  }
}

std::vector<CorpusShare> corpora_of(const DataConfig& data) {
  if (!data.corpora.rows.empty()) return data.corpora.rows;
  LONGHAUL_CHECK(data.corpus.has_value(), "a configuration without a corpus");
  CorpusShare whole;
  whole.path = *data.corpus;
  whole.weight = 1;
  return {whole};
}

const char* corpus_key(const DataConfig& data) {
  return data.corpora.rows.empty() ? "data.corpus" : "data.corpora";
}

TrainingCorpora::TrainingCorpora(TrainDraft& draft)
    : corpora_(open_all(draft)), mixture_(mixture_of(draft.config)) {}

std::int64_t TrainingCorpora::tokens() const {
  std::int64_t tokens = 0;
  for (const runtime::Corpus& corpus : corpora_) tokens += corpus.info().tokens;
  return tokens;
}

std::string TrainingCorpora::digest() const {
  std::vector<std::string> digests;
  for (const runtime::Corpus& corpus : corpora_) digests.push_back(corpus.digest());
  return mixture_.digest(digests);
}

std::optional<double> TrainingCorpora::unigram_entropy() const {
  double mean = 0;
  for (std::size_t i = 0; i < corpora_.size(); ++i) {
    const auto& entropy = corpora_[i].info().unigram_entropy;
    if (!entropy) return std::nullopt;
    mean += mixture_.share(static_cast<std::int64_t>(i)) * *entropy;
  }
  return mean;
}

std::string TrainingCorpora::label_weights() const {
  std::vector<std::string> types;
  std::string text;
  for (const runtime::Corpus& corpus : corpora_) {
    const std::string type = weights_of(corpus.info());
    if (type.empty() || std::ranges::count(types, type) != 0) continue;
    types.push_back(type);
    text += (text.empty() ? "" : ", ") + type;
  }
  return text;
}

runtime::MixedSequences make_sequences(const TrainConfig& config, const TrainingCorpora& corpora) {
  std::vector<runtime::Sequences> parts;
  for (const runtime::Corpus& corpus : corpora.all()) {
    parts.emplace_back(corpus, config.training.seq_len,
                       corpora.mixture().seed_of(std::ssize(parts)), row_rules(config.data));
  }
  return {corpora.mixture(), std::move(parts)};
}

std::vector<CorpusPart> corpus_parts(const TrainConfig& config, const TrainingCorpora& corpora,
                                     const runtime::MixedSequences& sequences) {
  // Any run that ends is far below the bound.
  const __int128 count =
      static_cast<__int128>(config.training.steps) * batch_plan(config).sequences_per_step;
  const std::vector<std::int64_t> taken = sequences.mixture().taken(
      static_cast<std::int64_t>(std::min<__int128>(count, std::int64_t{1} << 60)));
  std::vector<CorpusPart> parts;
  for (const runtime::Corpus& corpus : corpora.all()) {
    const std::int64_t i = std::ssize(parts);
    const runtime::CorpusInfo& info = corpus.info();
    CorpusPart& part = parts.emplace_back();
    part.path = info.path.string();
    part.digest = corpus.digest();
    part.share = sequences.mixture().share(i);
    part.tokens = info.tokens;
    part.sequences_per_epoch = sequences.of(i).per_epoch();
    part.epochs = static_cast<double>(taken[static_cast<std::size_t>(i)]) /
                  static_cast<double>(part.sequences_per_epoch);
    part.unigram_entropy = info.unigram_entropy;
    part.label_weights = weights_of(info);
  }
  return parts;
}

std::string tokenizer_identity(const std::string& name) {
  const auto kind = name.find(':'), digest = name.rfind(':');
  return kind == digest ? name : name.substr(0, kind) + name.substr(digest);
}

}  // namespace longhaul::launch

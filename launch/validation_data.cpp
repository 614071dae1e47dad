#include "launch/validation_data.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/corpora.h"
#include "launch/metrics.h"
#include "runtime/error.h"

namespace longhaul::launch {

namespace {

void check_corpora(TrainDraft& draft, const runtime::CorpusInfo& held_out,
                   const runtime::CorpusInfo& training) {
  const TrainConfig& config = draft.config;
  const auto wrong = [&](const std::string& what) {
    draft.key_problem("validation.corpus", runtime::quote_toml(*config.validation.corpus), what);
  };
  if (held_out.vocabulary_size != training.vocabulary_size ||
      tokenizer_identity(held_out.tokenizer) != tokenizer_identity(training.tokenizer)) {
    wrong(
        fmt::format("its tokens are of tokenizer {} with {} ids, those of {} of {} with {}; "
                    "tokenize it with the same",
                    held_out.tokenizer, held_out.vocabulary_size, training.path.string(),
                    training.tokenizer, training.vocabulary_size));
  }
  const std::int64_t tokens = held_out.tokens;
  if (tokens < config.training.seq_len) {
    wrong(fmt::format("expected at least training.seq_len = {} tokens, it holds {}",
                      config.training.seq_len, tokens));
    return;
  }
  const std::int64_t most = tokens / config.training.tokens_per_step;
  if (config.validation.steps > most) {
    draft.key_problem(
        "validation.steps", fmt::format("{}", config.validation.steps),
        fmt::format("{} holds {} tokens, and a step takes tokens_per_step = {}; expected {}-1 for "
                    "the whole corpus",
                    *config.validation.corpus, tokens, config.training.tokens_per_step,
                    most > 0 ? fmt::format("at most {}, or ", most) : ""));
  }
}

}  // namespace

ValidationData::ValidationData(runtime::Corpus corpus, const runtime::Sequences& training,
                               const TrainConfig& config)
    : config_(config.validation),
      seq_len_(config.training.seq_len),
      last_step_(config.training.steps),
      corpus_(std::move(corpus)),
      sequences_(training.in_order(corpus_)),
      count_(config.validation.steps == -1
                 ? sequences_.per_epoch()
                 : config.validation.steps * batch_plan(config).sequences_per_step) {}

std::int64_t ValidationData::tokens() const {
  return std::min(count_ * seq_len_, corpus_.info().tokens);
}

bool ValidationData::due(std::int64_t step) const {
  return step > 0 && (step % config_.freq == 0 || step == last_step_);
}

std::string ValidationData::text() const {
  const std::string every = config_.freq == 1 ? "step" : grouped(config_.freq) + " steps";
  return fmt::format("every {} and after the last: {} sequence{}, {} of {} tokens of {}", every,
                     grouped(count_), count_ == 1 ? "" : "s", grouped(tokens()),
                     grouped(corpus_.info().tokens), *config_.corpus);
}

runtime::PackedDocuments ValidationData::documents(std::int64_t number) const {
  return sequences_.documents(number);
}

void ValidationData::read(std::int64_t number, std::span<const runtime::Run> runs,
                          runtime::Rows& rows) const {
  std::size_t row = rows.tokens.size();
  sequences_.read(number, runs, rows);
  const std::int64_t whole = corpus_.info().tokens - sequences_.first_token(number);
  for (const runtime::Run& run : runs) {
    for (std::int64_t i = 0; i < run.count; ++i, ++row) {
      if (run[i] >= whole) rows.labels[row] = -1;
    }
  }
}

std::shared_ptr<const ValidationData> open_validation(TrainDraft& draft,
                                                      const runtime::CorpusInfo& training,
                                                      const runtime::Sequences& sequences) {
  if (!draft.config.validation.enable) return nullptr;
  runtime::Corpus corpus = runtime::Corpus::open(*draft.config.validation.corpus);
  check_corpora(draft, corpus.info(), training);
  draft.check();
  return std::make_shared<const ValidationData>(std::move(corpus), sequences, draft.config);
}

}  // namespace longhaul::launch

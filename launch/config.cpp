#include "launch/config.h"

#include <fmt/format.h>

#include "launch/schemes.h"

namespace longhaul::launch {

TrainDraft load_config(const std::string& path, const std::vector<std::string>& overrides,
                       std::optional<std::int64_t> world_size) {
  TrainDraft draft(path);
  read_config(draft, overrides);
  check_rules(draft, world_size);
  check_schemes(draft);
  draft.check();
  return draft;
}

runtime::Corpus open_corpus(TrainDraft& draft) {
  const TrainConfig& config = draft.config;
  runtime::Corpus corpus = runtime::Corpus::open(config.data.corpus);
  const runtime::CorpusInfo& info = corpus.info();
  if (config.model.vocab_size.value_or(info.vocabulary_size) < info.vocabulary_size) {
    draft.key_problem("model.vocab_size", fmt::format("{}", *config.model.vocab_size),
                      fmt::format("expected at least {}, the vocabulary of {}; raise it, or leave "
                                  "it out to take the corpus's",
                                  info.vocabulary_size, config.data.corpus));
  }
  if (info.tokens == 0) {
    runtime::fail(runtime::ExitCode::data, config.data.corpus,
                  ": holds no token; tokenize text into it");
  }
  if (config.training.seq_len > info.tokens) {
    draft.key_problem(
        "training.seq_len", fmt::format("{}", config.training.seq_len),
        fmt::format("expected at most {}, the tokens of {}", info.tokens, config.data.corpus));
  }
  draft.check();
  return corpus;
}

std::int64_t model_vocabulary(const TrainConfig& config, const runtime::CorpusInfo& corpus) {
  return config.model.vocab_size.value_or(corpus.vocabulary_size);
}

}  // namespace longhaul::launch

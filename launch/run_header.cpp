#include "launch/run_header.h"

#include "launch/attention_axis.h"
#include "launch/pretend.h"
#include "launch/schemes.h"

namespace longhaul::launch {

RunHeader run_header(const TrainConfig& config, const TrainingCorpora& corpora,
                     const ValidationData* validation, const Trainer& trainer) {
  RunHeader header;
  header.config = config;
  header.grid.data = config.parallelism.data_parallel_replicate_degree;
  header.grid.context = config.parallelism.context_parallel_degree;
  header.dedicated_servers = dedicated_servers(config);
  header.attention_servers = servers_text(config).value_or("");
  header.parameters = trainer.parameters();
  header.accumulation_steps = batch_plan(config).accumulation_steps;
  header.corpus_digest = corpora.digest();
  header.corpus_tokens = corpora.tokens();
  header.vocabulary_size = corpora.first().vocabulary_size;
  for (const SchemeChange& change : resolved_schemes(config))
    header.schemes.push_back({change.step, change.scheme.text()});
  if (const auto linear = linear_choice(config)) header.linear_scheme = linear->scheme.text();
  header.unigram_entropy = corpora.unigram_entropy();
  header.label_weights = corpora.label_weights();
  if (validation != nullptr) {
    header.validation = {validation->corpus().digest(), validation->sequences(),
                         validation->tokens()};
  }
  header.flop_convention = kFlopConvention;
  if (config.debug.pretend) header.pretended = parse_pretending(*config.debug.pretend).text();
  return header;
}

}  // namespace longhaul::launch

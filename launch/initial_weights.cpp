#include "launch/initial_weights.h"

#include <fmt/format.h>

#include "launch/metrics.h"
#include "runtime/error.h"

namespace longhaul::launch {

std::vector<std::string> require_fitting_weights(const WeightSource& source,
                                                 const TrainConfig& config,
                                                 std::int64_t vocab_size) {
  ModelConfig model = config.model;
  model.vocab_size = vocab_size;
  std::vector<std::string> lines = {
      fmt::format("weights  from {}: {}", source.path().string(), source.text())};
  std::string wrong;
  for (const ModelDifference& difference : compare_models(source.model(), model)) {
    const auto& [key, before, after] = difference;
    if (is_length_key(key)) {
      lines.push_back(fmt::format("changed  model.{} from {} to {}", key, before, after));
      continue;
    }
    const bool of_corpus = key == "vocab_size" && !config.model.vocab_size;
    wrong += fmt::format("\n  model.{} = {}{}: the weights' is {}", key, after,
                         of_corpus ? ", the corpus's" : "", before);
  }
  if (!wrong.empty())
    runtime::fail(runtime::ExitCode::config, source.path().string(),
                  ": the weights of checkpoint.initial_load_path are another model's:", wrong,
                  "\nSet these keys to the weights' values, which `longhaul convert` prints; what "
                  "may differ is the length: rope_theta, rope_local_base_freq, rope_scaling, "
                  "max_position_embeddings, original_max_position_embeddings and training.seq_len");
  if (const auto& length = source.model().max_position_embeddings)
    lines.push_back(fmt::format("length   {} a sequence; the weights were made for {}",
                                grouped(config.training.seq_len), grouped(*length)));
  return lines;
}

}  // namespace longhaul::launch

#include "launch/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "launch/device.h"
#include "models/family.h"
#include "models/rope.h"

namespace longhaul::launch {

namespace {

/// Rows of logits at a time on a GPU: within 2 GiB of logits, and so many because each chunk's
/// matmul reads and writes all gradients of the head.
std::int64_t device_chunk_rows(std::int64_t vocabulary) {
  constexpr std::int64_t kBytes = std::int64_t{2} << 30, kLeast = 512, kMost = 8192,
                         kMultiple = 128;
  const std::int64_t rows = kBytes / (vocabulary * runtime::size_bytes(runtime::DType::float32));
  return std::clamp(rows / kMultiple * kMultiple, kLeast, kMost);
}

}  // namespace

models::Model make_model(const TrainConfig& config, std::int64_t vocabulary) {
  ModelConfig model = config.model;
  model.vocab_size = vocabulary;
  model.dtype = config.training.dtype;
  model.seq_len = config.training.seq_len;
  models::ModelOptions options;
  const std::string& mode = config.activation_checkpoint.mode;
  options.recompute = mode == "full"        ? models::Recompute::full
                      : mode == "selective" ? models::Recompute::selective
                                            : models::Recompute::none;
  if (on_cuda(config)) options.head_chunk_rows = device_chunk_rows(vocabulary);
  return models::model_of(std::move(model), options);
}

std::string layers_text(std::span<const std::string> words,
                        std::optional<std::int64_t> sliding_window) {
  std::vector<std::string> kinds;  // in the order in which they come
  for (const std::string& word : words) {
    if (std::ranges::count(kinds, word) == 0) kinds.push_back(word);
  }
  std::string text;
  for (const std::string& kind : kinds) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", std::ranges::count(words, kind), kind);
    if (models::is_sliding(kind)) text += fmt::format(" (window {})", sliding_window.value_or(0));
  }
  return fmt::format("{}: {}", words.size(), text);
}

std::string layers_text(const ModelConfig& model) {
  return layers_text(models::family_of(model.architecture).layers(model), model.sliding_window);
}

bool has_sliding_layers(const ModelConfig& model) {
  return std::ranges::any_of(models::family_of(model.architecture).layers(model),
                             models::is_sliding);
}

std::optional<std::string> rope_text(const ModelConfig& model, std::int64_t seq_len) {
  const std::string type = models::rope_type_of(model.rope_scaling);
  if (!models::follows_length(type)) return std::nullopt;
  const std::string frozen = "for all positions: another seq_len turns them otherwise";
  if (type != "longrope") {
    return fmt::format(
        "{}, of {} tokens, the larger of training.seq_len and "
        "max_position_embeddings, {}",
        type, std::max(seq_len, *model.max_position_embeddings), frozen);
  }
  const std::int64_t original = *models::original_length(model);
  const bool longer = seq_len > original;
  return fmt::format("{} with {}, since training.seq_len = {} is {} the original length {}, {}",
                     type, longer ? "long_factor" : "short_factor", seq_len,
                     longer ? "above" : "at most", original, frozen);
}

}  // namespace longhaul::launch

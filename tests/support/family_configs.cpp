#include "tests/support/family_configs.h"

#include "launch/config.h"
#include "runtime/error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::test {
namespace {

const char* const kHybrid = "[\"linear_attention\", \"full_attention\"]";

ModelLines with(ModelLines lines, const ModelLines& more) {
  lines.insert(more.begin(), more.end());
  return lines;
}

}  // namespace

ModelLines family_lines(const std::string& family) {
  const ModelLines all = {
      {"architecture", "\"" + family + "\""}, {"hidden_size", "32"}, {"num_hidden_layers", "2"}};
  const ModelLines heads =
      with(all, {{"num_attention_heads", "2"}, {"num_key_value_heads", "2"}, {"head_dim", "16"}});
  const ModelLines llama = with(heads, {{"intermediate_size", "64"}});
  const ModelLines qwen = with(llama, {{"linear_num_key_heads", "2"},
                                       {"linear_num_value_heads", "4"},
                                       {"linear_key_head_dim", "8"},
                                       {"linear_value_head_dim", "8"},
                                       {"layer_types", kHybrid}});
  if (family == "qwen2" || family == "qwen3")
    return with(
        llama,
        {{"use_sliding_window", "true"}, {"sliding_window", "8"}, {"max_window_layers", "1"}});
  if (family == "gemma2") return with(llama, {{"sliding_window", "8"}});
  if (family == "gemma3_text")
    return with(llama, {{"sliding_window", "8"}, {"sliding_window_pattern", "2"}});
  if (family == "phi3")
    return with(llama, {{"sliding_window", "8"},
                        {"partial_rotary_factor", "0.5"},
                        {"original_max_position_embeddings", "32"}});
  if (family == "mistral") return with(llama, {{"sliding_window", "8"}});
  if (family == "llama" || family == "olmo2") return llama;
  if (family == "qwen3_next") return with(qwen, {{"mlp_only_layers", "[0, 1]"}});
  if (family == "qwen3_5") return qwen;
  if (family == "granitemoehybrid")
    return with(heads, {{"layer_types", "[\"mamba\", \"attention\"]"},
                        {"num_local_experts", "0"},
                        {"shared_intermediate_size", "64"},
                        {"mamba_n_heads", "8"},
                        {"mamba_d_head", "8"},
                        {"mamba_d_state", "6"}});
  if (family == "nemotron_h")
    return with(llama, {{"hybrid_override_pattern", "\"M*\""},
                        {"mamba_num_heads", "8"},
                        {"mamba_head_dim", "8"},
                        {"ssm_state_size", "6"},
                        {"n_groups", "1"}});
  if (family == "minimax")
    return with(llama, {{"layer_types", kHybrid}, {"num_local_experts", "1"}});
  if (family == "kimi_linear")
    return with(all, {{"intermediate_size", "64"},
                      {"first_k_dense_replace", "2"},
                      {"linear_attn_config.kda_layers", "[1, 2]"},
                      {"linear_attn_config.num_heads", "2"},
                      {"linear_attn_config.head_dim", "8"}});
  if (family == "linear_llama3") return with(llama, {{"layer_types", kHybrid}});
  runtime::fail(runtime::ExitCode::internal, "no lines of ", family);
}

std::string model_section(const ModelLines& lines) {
  std::string section = "[model]\n";
  std::map<std::string, std::string> tables;
  for (const auto& [key, value] : lines) {
    const std::size_t dot = key.find('.');
    if (dot == key.npos) {
      section += key + " = " + value + "\n";
    } else {
      tables[key.substr(0, dot)] += key.substr(dot + 1) + " = " + value + "\n";
    }
  }
  for (const auto& [table, entries] : tables) section += "[model." + table + "]\n" + entries;
  return section;
}

launch::TrainConfig family_config(const ModelLines& lines) {
  const TempDirectory folder;
  const std::string path = folder.write("run.toml", model_section(lines) + R"([job]
output_dir = "out"
[data]
corpus = "c.h5"
[training]
seq_len = 8
tokens_per_step = 8
steps = 1
[parallelism]
context_parallel_degree = 1
)");
  return launch::load_config(path, {}, std::nullopt, launch::NamedFiles::unread).config;
}

}  // namespace longhaul::test

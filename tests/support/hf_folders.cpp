#include "tests/support/hf_folders.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/temp_directory.h"

namespace longhaul::test {

namespace fs = std::filesystem;
namespace safetensors = runtime::safetensors;
using Json = nlohmann::ordered_json;

namespace {

std::vector<float> values_of(const HfTensor& tensor) {
  const std::string& name = tensor.values_of.empty() ? tensor.name : tensor.values_of;
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>()(name)));
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.sizes) count *= size;
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i)  // few digits: any dtype holds them
    values.push_back(static_cast<float>(static_cast<int>(random() % 257) - 128) / 256.0f);
  return values;
}

void write_others(const fs::path& folder, const std::string& config) {
  write_text(folder / "config.json", config);
  write_text(folder / "generation_config.json", "{\n  \"eos_token_id\": [2, 7]\n}");
  write_text(folder / "tokenizer.json", "{ \"not\": \"read\" }\n");
  write_text(folder / "tokenizer_config.json", "{}");
  write_text(folder / "LICENSE", "as it is\n");
}

}  // namespace

std::string changed(const std::string& text, const std::map<std::string, std::string>& changes) {
  Json json = Json::parse(text);
  for (const auto& [key, value] : changes) {
    if (value.empty()) {
      json.erase(key);
    } else {
      json[key] = Json::parse(value);
    }
  }
  return json.dump(2) + "\n";
}

std::string llama_config(const std::map<std::string, std::string>& changes) {
  return changed(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": [2, 7], "hidden_act": "silu", "hidden_size": 16,
    "initializer_range": 0.02, "intermediate_size": 24, "max_position_embeddings": 128,
    "mlp_bias": false, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
    "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 31})",
                 changes);
}

std::vector<HfTensor> llama_tensors() {
  std::vector<HfTensor> tensors = {{"model.embed_tokens.weight", {31, 16}}};
  for (const char* const layer : {"model.layers.0.", "model.layers.1."}) {
    const auto add = [&](const char* name, std::vector<std::int64_t> sizes) {
      tensors.push_back({std::string(layer) + name + ".weight", std::move(sizes)});
    };
    add("self_attn.q_proj", {16, 16});
    add("self_attn.k_proj", {8, 16});
    add("self_attn.v_proj", {8, 16});
    add("self_attn.o_proj", {16, 16});
    add("mlp.gate_proj", {24, 16});
    add("mlp.up_proj", {24, 16});
    add("mlp.down_proj", {16, 24});
    add("input_layernorm", {16});
    add("post_attention_layernorm", {16});
  }
  tensors.push_back({"model.norm.weight", {16}});
  tensors.push_back({"lm_head.weight", {31, 16}});
  return tensors;
}

void write_safetensors(const fs::path& path, const std::vector<HfTensor>& tensors,
                       const safetensors::Metadata& metadata) {
  std::vector<safetensors::TensorInfo> infos;
  for (const HfTensor& tensor : tensors)
    infos.push_back({tensor.name, tensor.element, tensor.sizes});
  safetensors::Writer writer(path, infos, metadata);
  while (const safetensors::Entry* entry = writer.next())
    writer.append_floats(values_of(*std::ranges::find(tensors, entry->name, &HfTensor::name)));
  writer.finish();
}

void write_hf_folder(const fs::path& folder, const std::string& config,
                     const std::vector<HfTensor>& tensors) {
  fs::create_directories(folder);
  write_others(folder, config);
  write_safetensors(folder / "model.safetensors", tensors);
}

void write_sharded_folder(const fs::path& folder, const std::string& config,
                          const std::vector<HfTensor>& tensors, std::size_t files) {
  fs::create_directories(folder);
  write_others(folder, config);
  Json map = Json::object();
  for (std::size_t file = 0; file < files; ++file) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, files);
    std::vector<HfTensor> part;
    for (std::size_t i = file; i < tensors.size(); i += files) {
      part.push_back(tensors[i]);
      map[tensors[i].name] = name;
    }
    write_safetensors(folder / name, part);
  }
  const Json index = {{"metadata", {{"total_size", 12345}}}, {"weight_map", map}};
  write_text(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

std::map<std::string, std::string> contents_of(const fs::path& folder) {
  std::map<std::string, std::string> contents;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name != "README.md") contents[name] = read_text(entry.path());
  }
  return contents;
}

}  // namespace longhaul::test

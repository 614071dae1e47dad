// Names and sizes of every family's parameters, as Hugging Face's checkpoints have them: what
// transformers 5.24 saves of a model of the same keys. Of linear_llama3 nothing is published.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "launch/config.h"
#include "launch/model.h"
#include "tests/support/family_configs.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using Parameters = std::map<std::string, std::vector<std::int64_t>>;

// Kimi's dense MLPs are `mlp` in its published weights; transformers writes `block_sparse_moe`, the
// name of its experts.
const std::map<std::string, Parameters> kPublished = {
    {"llama",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 64}},
      {"model.layers.0.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.0.mlp.up_proj.weight", {64, 32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.v_proj.weight", {32, 32}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.mlp.down_proj.weight", {32, 64}},
      {"model.layers.1.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.1.mlp.up_proj.weight", {64, 32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.v_proj.weight", {32, 32}},
      {"model.norm.weight", {32}}}},
    {"qwen3_next",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.linear_attn.A_log", {4}},
      {"model.layers.0.linear_attn.conv1d.weight", {64, 1, 4}},
      {"model.layers.0.linear_attn.dt_bias", {4}},
      {"model.layers.0.linear_attn.in_proj_ba.weight", {8, 32}},
      {"model.layers.0.linear_attn.in_proj_qkvz.weight", {96, 32}},
      {"model.layers.0.linear_attn.norm.weight", {8}},
      {"model.layers.0.linear_attn.out_proj.weight", {32, 32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 64}},
      {"model.layers.0.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.0.mlp.up_proj.weight", {64, 32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.mlp.down_proj.weight", {32, 64}},
      {"model.layers.1.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.1.mlp.up_proj.weight", {64, 32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.k_norm.weight", {16}},
      {"model.layers.1.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.q_norm.weight", {16}},
      {"model.layers.1.self_attn.q_proj.weight", {64, 32}},
      {"model.layers.1.self_attn.v_proj.weight", {32, 32}},
      {"model.norm.weight", {32}}}},
    {"qwen3_5",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.linear_attn.A_log", {4}},
      {"model.layers.0.linear_attn.conv1d.weight", {64, 1, 4}},
      {"model.layers.0.linear_attn.dt_bias", {4}},
      {"model.layers.0.linear_attn.in_proj_a.weight", {4, 32}},
      {"model.layers.0.linear_attn.in_proj_b.weight", {4, 32}},
      {"model.layers.0.linear_attn.in_proj_qkv.weight", {64, 32}},
      {"model.layers.0.linear_attn.in_proj_z.weight", {32, 32}},
      {"model.layers.0.linear_attn.norm.weight", {8}},
      {"model.layers.0.linear_attn.out_proj.weight", {32, 32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 64}},
      {"model.layers.0.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.0.mlp.up_proj.weight", {64, 32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.mlp.down_proj.weight", {32, 64}},
      {"model.layers.1.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.1.mlp.up_proj.weight", {64, 32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.k_norm.weight", {16}},
      {"model.layers.1.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.q_norm.weight", {16}},
      {"model.layers.1.self_attn.q_proj.weight", {64, 32}},
      {"model.layers.1.self_attn.v_proj.weight", {32, 32}},
      {"model.norm.weight", {32}}}},
    {"granitemoehybrid",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.mamba.A_log", {8}},
      {"model.layers.0.mamba.D", {8}},
      {"model.layers.0.mamba.conv1d.bias", {76}},
      {"model.layers.0.mamba.conv1d.weight", {76, 1, 4}},
      {"model.layers.0.mamba.dt_bias", {8}},
      {"model.layers.0.mamba.in_proj.weight", {148, 32}},
      {"model.layers.0.mamba.norm.weight", {64}},
      {"model.layers.0.mamba.out_proj.weight", {32, 64}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.shared_mlp.input_linear.weight", {128, 32}},
      {"model.layers.0.shared_mlp.output_linear.weight", {32, 64}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.v_proj.weight", {32, 32}},
      {"model.layers.1.shared_mlp.input_linear.weight", {128, 32}},
      {"model.layers.1.shared_mlp.output_linear.weight", {32, 64}},
      {"model.norm.weight", {32}}}},
    {"nemotron_h",
     {{"backbone.embeddings.weight", {29, 32}},
      {"backbone.layers.0.mixer.A_log", {8}},
      {"backbone.layers.0.mixer.D", {8}},
      {"backbone.layers.0.mixer.conv1d.bias", {76}},
      {"backbone.layers.0.mixer.conv1d.weight", {76, 1, 4}},
      {"backbone.layers.0.mixer.dt_bias", {8}},
      {"backbone.layers.0.mixer.in_proj.weight", {148, 32}},
      {"backbone.layers.0.mixer.norm.weight", {64}},
      {"backbone.layers.0.mixer.out_proj.weight", {32, 64}},
      {"backbone.layers.0.norm.weight", {32}},
      {"backbone.layers.1.mixer.k_proj.weight", {32, 32}},
      {"backbone.layers.1.mixer.o_proj.weight", {32, 32}},
      {"backbone.layers.1.mixer.q_proj.weight", {32, 32}},
      {"backbone.layers.1.mixer.v_proj.weight", {32, 32}},
      {"backbone.layers.1.norm.weight", {32}},
      {"backbone.norm_f.weight", {32}},
      {"lm_head.weight", {29, 32}}}},
    {"minimax",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.block_sparse_moe.experts.0.w1.weight", {64, 32}},
      {"model.layers.0.block_sparse_moe.experts.0.w2.weight", {32, 64}},
      {"model.layers.0.block_sparse_moe.experts.0.w3.weight", {64, 32}},
      {"model.layers.0.block_sparse_moe.gate.weight", {1, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.self_attn.norm.weight", {32}},
      {"model.layers.0.self_attn.out_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.output_gate.weight", {32, 32}},
      {"model.layers.0.self_attn.qkv_proj.weight", {96, 32}},
      {"model.layers.1.block_sparse_moe.experts.0.w1.weight", {64, 32}},
      {"model.layers.1.block_sparse_moe.experts.0.w2.weight", {32, 64}},
      {"model.layers.1.block_sparse_moe.experts.0.w3.weight", {64, 32}},
      {"model.layers.1.block_sparse_moe.gate.weight", {1, 32}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.k_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.1.self_attn.v_proj.weight", {32, 32}},
      {"model.norm.weight", {32}}}},
    {"kimi_linear",
     {{"lm_head.weight", {29, 32}},
      {"model.embed_tokens.weight", {29, 32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 64}},
      {"model.layers.0.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.0.mlp.up_proj.weight", {64, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.self_attn.A_log", {1, 1, 2, 1}},
      {"model.layers.0.self_attn.b_proj.weight", {2, 32}},
      {"model.layers.0.self_attn.dt_bias", {16}},
      {"model.layers.0.self_attn.f_a_proj.weight", {8, 32}},
      {"model.layers.0.self_attn.f_b_proj.weight", {16, 8}},
      {"model.layers.0.self_attn.g_a_proj.weight", {8, 32}},
      {"model.layers.0.self_attn.g_b_proj.weight", {16, 8}},
      {"model.layers.0.self_attn.k_conv1d.weight", {16, 1, 4}},
      {"model.layers.0.self_attn.k_proj.weight", {16, 32}},
      {"model.layers.0.self_attn.o_norm.weight", {8}},
      {"model.layers.0.self_attn.o_proj.weight", {32, 16}},
      {"model.layers.0.self_attn.q_conv1d.weight", {16, 1, 4}},
      {"model.layers.0.self_attn.q_proj.weight", {16, 32}},
      {"model.layers.0.self_attn.v_conv1d.weight", {16, 1, 4}},
      {"model.layers.0.self_attn.v_proj.weight", {16, 32}},
      {"model.layers.1.mlp.down_proj.weight", {32, 64}},
      {"model.layers.1.mlp.gate_proj.weight", {64, 32}},
      {"model.layers.1.mlp.up_proj.weight", {64, 32}},
      {"model.layers.1.input_layernorm.weight", {32}},
      {"model.layers.1.post_attention_layernorm.weight", {32}},
      {"model.layers.1.self_attn.A_log", {1, 1, 2, 1}},
      {"model.layers.1.self_attn.b_proj.weight", {2, 32}},
      {"model.layers.1.self_attn.dt_bias", {16}},
      {"model.layers.1.self_attn.f_a_proj.weight", {8, 32}},
      {"model.layers.1.self_attn.f_b_proj.weight", {16, 8}},
      {"model.layers.1.self_attn.g_a_proj.weight", {8, 32}},
      {"model.layers.1.self_attn.g_b_proj.weight", {16, 8}},
      {"model.layers.1.self_attn.k_conv1d.weight", {16, 1, 4}},
      {"model.layers.1.self_attn.k_proj.weight", {16, 32}},
      {"model.layers.1.self_attn.o_norm.weight", {8}},
      {"model.layers.1.self_attn.o_proj.weight", {32, 16}},
      {"model.layers.1.self_attn.q_conv1d.weight", {16, 1, 4}},
      {"model.layers.1.self_attn.q_proj.weight", {16, 32}},
      {"model.layers.1.self_attn.v_conv1d.weight", {16, 1, 4}},
      {"model.layers.1.self_attn.v_proj.weight", {16, 32}},
      {"model.norm.weight", {32}}}}};

class Names : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Families, Names,
                         testing::Values("llama", "qwen3_next", "qwen3_5", "granitemoehybrid",
                                         "nemotron_h", "minimax", "kimi_linear"),
                         [](const auto& info) { return info.param; });

TEST_P(Names, AreThePublishedOnes) {
  const test::TempDirectory folder;
  const std::string path =
      folder.write("run.toml", test::model_section(test::family_lines(GetParam())) + R"([job]
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
  const TrainConfig config = load_config(path, {}, std::nullopt, NamedFiles::unread).config;
  Parameters ours;
  for (const parallel::Parameter& parameter : make_model(config, 29).table().parameters())
    ours[parameter.name] = parameter.sizes;
  EXPECT_EQ(ours, kPublished.at(GetParam()));
}

}  // namespace
}  // namespace longhaul::launch

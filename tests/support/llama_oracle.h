#pragma once
// A Llama, and the families that grew from it, in plain double loops, written
// from the definitions (layers with a state: recurrent_oracle.h): the oracle of the model tests.
// Forward only; gradients are central differences of it. Shares no code with models/ but the
// configuration, complete, and names.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "models/model_config.h"

namespace longhaul::test {

using NamedValues = std::map<std::string, std::vector<double>>;

struct OracleBatch {
  std::vector<std::int64_t> tokens, labels, positions;
  std::vector<std::int64_t> documents;  ///< row r sees rows s <= r of its own document
  /// Where given, what row r sees instead, in a sliding layer too.
  std::function<bool(std::int64_t layer, std::size_t r, std::size_t s)> sees = {};
  std::vector<double> label_weights = {};  ///< empty: 1 each
};

/// How a model differs from Llama. Written from the families' definitions, apart from models/.
/// Biases of "x.weight" are there where "x.bias" is, and so are sinks and matrices of several
/// parts.
struct OracleForm {
  std::string embedding = "model.embed_tokens.weight", layers = "model.layers.",
              final_norm = "model.norm.weight", head = "lm_head.weight";
  std::string attention_norm = "input_layernorm.weight", attention = "self_attn.",
              mlp_norm = "post_attention_layernorm.weight";  // empty: none
  std::string attention_norm_after, mlp_norm_after;          // behind a branch
  double eps = 0, norm_offset = 0;
  bool qk_norm = false, output_gate = false;
  std::int64_t turned = 0;  // dims of a head
  double scale = 0;
  double score_cap = 0, logit_cap = 0;  // 0: none
  bool sigmoid = false;                 // in the place of softmax
  double sigmoid_bias = 0;
  bool gelu = false;  // by tanh, of gates
  double embedding_multiplier = 1, logits_scaling = 1;
  double attention_alpha = 1, attention_beta = 1, mlp_alpha = 1, mlp_beta = 1;
  bool residual_of_norm = false;
  double linear_alpha = 1, linear_beta = 1;  // of layers with a state
  std::string recurrence;                    // the prefix of their names
  std::string mixers;                        // of each layer: 'a'ttention, 'r'ecurrence, '-' none
  bool mixer_and_mlp = true;                 // in each layer; else an MLP where there is no mixer
};
/// Of the configuration's family.
OracleForm oracle_form(const models::ModelConfig& config);

/// logits [rows, V]. Without a form, of the configuration's family; so below.
std::vector<double> oracle_logits(const models::ModelConfig& config, const OracleForm& form,
                                  const NamedValues& parameters, const OracleBatch& batch);
std::vector<double> oracle_logits(const models::ModelConfig& config, const NamedValues& parameters,
                                  const OracleBatch& batch);
/// The sum of token losses, by their weights.
double oracle_loss(const models::ModelConfig& config, const OracleForm& form,
                   const NamedValues& parameters, const OracleBatch& batch);
double oracle_loss(const models::ModelConfig& config, const NamedValues& parameters,
                   const OracleBatch& batch);
/// d loss / d parameter of every element, by fourth-order central differences.
NamedValues oracle_gradients(const models::ModelConfig& config, const OracleForm& form,
                             NamedValues parameters, const OracleBatch& batch);
NamedValues oracle_gradients(const models::ModelConfig& config, const NamedValues& parameters,
                             const OracleBatch& batch);

}  // namespace longhaul::test

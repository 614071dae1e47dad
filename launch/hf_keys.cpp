#include "launch/hf_keys_impl.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <span>

#include "launch/hf_model_keys_impl.h"

namespace longhaul::launch {
namespace {

struct Renamed {
  std::string_view model_type, family;
};
constexpr Renamed kRenamed[] = {{"qwen3_5_text", "qwen3_5"}};

constexpr std::string_view kConverted[] = {"llama",  "mistral",     "qwen2", "qwen3",
                                           "gemma2", "gemma3_text", "phi3",  "olmo2"};

// Names of one kind, apart by spaces.
constexpr std::string_view kHarmless =
    // who wrote the file, and of what
    " architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path "
    "auto_map _attn_implementation _attn_implementation_autoset attn_implementation "
    "_attn_implementation_internal unsloth_version unsloth_fixed model_name "
    // ids of tokens and the tokenizer
    "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class prefix "
    // how transformers runs it
    "use_cache cache_implementation gradient_checkpointing use_bfloat16 tf_legacy_loss torchscript "
    "is_decoder "
    "return_dict return_dict_in_generate output_attentions output_hidden_states output_scores "
    "output_router_logits pretraining_tp chunk_size_feed_forward tie_encoder_decoder hybrid_cache "
    "use_flash_attn flash_attention attn_config_type "
    // initial weights
    "initializer_range init_std "
    // how text is generated
    "do_sample temperature top_k top_p typical_p min_length max_length max_new_tokens num_beams "
    "num_beam_groups num_return_sequences diversity_penalty length_penalty repetition_penalty "
    "encoder_no_repeat_ngram_size no_repeat_ngram_size bad_words_ids early_stopping "
    "exponential_decay_length_penalty remove_invalid_values suppress_tokens begin_suppress_tokens "
    // tasks of other heads
    "problem_type num_labels id2label label2id finetuning_task task_specific_params "
    "classifier_dropout ";

/// The values of a key that change nothing; null always is one.
struct Neutral {
  std::string_view keys;    ///< apart by spaces, one at either end
  std::string_view values;  ///< JSON texts, the same way
  std::string_view reason;  ///< why another cannot be had
};
constexpr Neutral kNeutral[] = {
    {" attention_dropout hidden_dropout embd_pdrop resid_pdrop attn_pdrop embedding_dropout ",
     " 0 0.0 ", "dropout is not built"},
    {" attention_bias mlp_bias lm_head_bias use_bias qkv_bias bias ", " false ",
     "the family's matrices have no such biases here"},
    {" partial_rotary_factor ", " 1 1.0 ", "all of a head turns in this family"},
    {" is_encoder_decoder add_cross_attention ", " false ", "encoders are not built"},
    {" full_attn_mod interpolate_factor ", " 1 1.0 ", "it is not built"},
    {" use_bidirectional_attention ", " false ", "later tokens would be seen"},
    {" is_causal ", " true ", "later tokens would be seen"},
    {" use_sliding_window qk_layernorm use_mrope use_qk_norm rope_interleaved no_rope ", " false ",
     "it is not built for this family"},
    {" pruned_heads ", " {} ", "pruned heads are not built"},
    {" num_experts num_local_experts n_routed_experts n_shared_experts moe_intermediate_size "
     "num_experts_per_tok router_aux_loss_coef decoder_sparse_step norm_topk_prob ",
     " 0 0.0 ", "experts are not built"},
    {" quantization_config compression_config quantization ", " {} ",
     "the weights are quantized; convert a folder of float32, bfloat16 or float16 ones"},
    {" text_config vision_config audio_config vision_tower_config projector_config ", " {} ",
     "this is a model of several kinds of input, of which the language model is a part; convert a "
     "folder of that part alone"},
    {" attn_logit_softcapping final_logit_softcapping ", "",
     "capped scores and logits are not built for this family"},
    {" sliding_window layer_types sliding_window_pattern ", "",
     "the family has no windows in transformers"},
};

/// What the MLP's gate must go through, by family.
std::span<const std::string_view> activations(const std::string& family) {
  static constexpr std::array<std::string_view, 2> kSilu{"silu", "swish"};
  static constexpr std::array<std::string_view, 1> kGelu{"gelu_pytorch_tanh"};
  if (family.starts_with("gemma")) return kGelu;
  return kSilu;
}

bool among(std::string_view words, std::string_view word) {
  return !word.empty() && word.find(' ') == word.npos &&
         words.find(fmt::format(" {} ", word)) != words.npos;
}

}  // namespace

std::string family_of_model_type(const std::string& model_type) {
  const auto found = std::ranges::find(kRenamed, model_type, &Renamed::model_type);
  return found == std::end(kRenamed) ? model_type : std::string(found->family);
}

std::string causal_lm_class(const std::string& family) {
  if (family == "gemma3_text") return "Gemma3ForCausalLM";
  std::string name = family;
  if (name[0] >= 'a' && name[0] <= 'z') name[0] = static_cast<char>(name[0] - 'a' + 'A');
  return name + "ForCausalLM";
}

bool converts(const std::string& family) {
  return std::ranges::count(kConverted, std::string_view(family)) != 0;
}

bool has_hf_key(const std::string& family, std::string_view name) {
  // Llamas here have options that are none of Llama's; other families have no more than their own.
  constexpr std::string_view kLlama =
      " hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
      "head_dim rms_norm_eps rope_theta tie_word_embeddings vocab_size max_position_embeddings "
      "attention_bias mlp_bias ";
  return has_model_key(family, name) &&
         (family != "llama" || among(kLlama, name) || name.starts_with("rope_scaling."));
}

std::vector<HfDefault> class_defaults(const std::string& family) {
  struct Length {
    std::string_view family;
    std::int64_t tokens;
  };
  constexpr Length kLengths[] = {{"llama", 2048},  {"mistral", 131072}, {"qwen2", 32768},
                                 {"qwen3", 32768}, {"gemma2", 8192},    {"gemma3_text", 131072},
                                 {"phi3", 4096},   {"olmo2", 2048}};
  std::vector<HfDefault> defaults;
  if (family == "mistral") defaults.push_back({"sliding_window", 4096});
  const auto length = std::ranges::find(kLengths, family, &Length::family);
  if (length != std::end(kLengths)) defaults.push_back({"max_position_embeddings", length->tokens});
  return defaults;
}

bool is_harmless(std::string_view key) { return among(kHarmless, key); }

std::string objection(const std::string& family, const std::string& key, const HfJson& value) {
  if (value.is_null()) return "";
  if (key == "hidden_act" || key == "hidden_activation") {
    const auto expected = activations(family);
    const bool same = value.is_string() &&
                      std::ranges::count(expected, std::string_view(value.get<std::string>())) != 0;
    // Gemma's first files name an activation under hidden_act that their models do not have.
    if (same || (family.starts_with("gemma") && key == "hidden_act")) return "";
    return fmt::format("the MLP of {} has {}", family, expected.front());
  }
  // Where nothing depends on the length, it says nothing about the model.
  if (key == "max_position_embeddings" || key == "max_window_layers") return "";
  if (key == "layer_types" && has_hf_key(family, "sliding_window"))
    return fmt::format(
        "transformers' class of {} does not read it; sliding_window is that of all "
        "layers there",
        family);
  for (const Neutral& neutral : kNeutral) {
    if (!among(neutral.keys, key)) continue;
    return among(neutral.values, value.dump(-1, ' ', true, HfJson::error_handler_t::replace))
               ? ""
               : std::string(neutral.reason);
  }
  return "this program does not know what it changes; take it out if that is nothing";
}

}  // namespace longhaul::launch

#include "launch/peer_words.h"

namespace longhaul::launch {
namespace {

constexpr runtime::ConfigSynonyms::Key kKeys[] = {
    {"model.num_hidden_layers", "n_layer n_layers num_layers layers depth"},
    {"model.hidden_size",
     "d_model n_embd n_embed embed_dim embedding_dim embedding_size emb_dim "
     "hidden_dim model_dim dim width"},
    {"model.intermediate_size",
     "ffn_hidden_size ffn_dim ff_dim d_ff n_inner mlp_dim mlp_hidden_size "
     "intermediate_dim"},
    {"model.num_attention_heads", "n_head n_heads num_heads heads attention_heads"},
    {"model.num_key_value_heads",
     "n_kv_head n_kv_heads num_kv_heads kv_heads n_query_groups num_query_groups"},
    {"model.head_dim", "head_size d_head dim_head kv_channels"},
    {"model.rms_norm_eps",
     "norm_eps norm_epsilon layernorm_epsilon layer_norm_eps "
     "rms_norm_epsilon model.eps model.epsilon"},
    {"model.rope_theta", "rope_base rotary_base rotary_emb_base"},
    {"model.tie_word_embeddings",
     "tie_embeddings tied_embeddings weight_tying enable_weight_tying "
     "share_embeddings_and_output_weights"},
    {"model.tie_word_embeddings", "untie_embeddings_and_output_weights", "the opposite of it"},
    {"model.vocab_size", "vocabulary_size padded_vocab_size n_vocab"},
    {"model.architecture", "arch model_type model_name model.name model.type model.flavor"},
    {"model.sliding_window", "window_size sliding_window_size attention_window local_window_size"},
    {"model.layer_types", "attn_types layer_type attention_types"},
    {"data.corpus",
     "path data_path dataset dataset_path dataset_name data_prefix data_dir "
     "train_data train_data_path train_data_prefix train_file train_files input_file",
     "a file that `longhaul tokenize` writes"},
    {"data.corpora",
     "blend blended_datasets data_mixture dataset_mixture mixture dataset_weights data_weights "
     "dataset_ratios data_ratios",
     "a path and a weight for each"},
    {"data.mask", "attention_mask attn_mask attn_mask_type mask_type attention_type"},
    {"data.mask", "reset_attention_mask packing sample_packing",
     "\"documents\" keeps attention inside documents"},
    {"data.window", "data.window_size data.sliding_window"},
    {"data.prefix", "data.prefix_size data.prefix_len data.prefix_length"},
    {"data.block", "data.block_size data.block_len"},
    {"data.global", "data.global_tokens data.num_global_tokens"},
    {"training.seq_len",
     "seq_length sequence_length sequence_len max_seq_len max_seq_length "
     "max_sequence_length max_length model_max_length context_length context_len "
     "context_size context_window block_size cutoff_len n_ctx n_positions"},
    {"training.tokens_per_step",
     "global_batch_size train_batch_size total_batch_size effective_batch_size gbs",
     "in tokens, sequences times seq_len"},
    {"training.tokens_per_step", "global_batch_tokens batch_size_tokens tokens_per_batch"},
    {"training.tokens_per_step",
     "gradient_accumulation_steps gradient_accumulation grad_accum_steps grad_accum "
     "accumulation_steps accumulate_grad_batches",
     "what one pass does not hold is accumulated"},
    {"training.micro_batch_size",
     "batch_size local_batch_size device_batch_size per_device_batch_size "
     "per_device_train_batch_size train_micro_batch_size_per_gpu "
     "train_micro_batch_size microbatch_size mbs",
     "sequences of one pass; tokens_per_step sets the whole step"},
    {"training.steps",
     "max_steps train_steps num_steps total_steps total_num_steps num_train_steps "
     "num_training_steps train_iters max_iters num_iterations iterations"},
    {"training.steps", "epochs num_epochs max_epochs num_train_epochs train_samples max_tokens",
     "in optimizer steps"},
    {"training.max_norm",
     "clip_grad grad_clip gradient_clipping gradient_clip_val max_grad_norm "
     "clip_grad_norm clip_norm"},
    {"training.dtype", "bf16 bfloat16", "write \"bfloat16\""},
    {"training.dtype", "fp16 float16 half amp", "\"float32\" or \"bfloat16\""},
    {"training.dtype",
     "fp32 precision mixed_precision mixed_precision_param torch_dtype compute_dtype "
     "param_dtype params_dtype"},
    {"optimizer.lr", "learning_rate max_lr max_learning_rate peak_lr base_lr"},
    {"optimizer.beta1", "adam_beta1 beta_1 adam_beta_1 b1"},
    {"optimizer.beta2", "adam_beta2 beta_2 adam_beta_2 b2"},
    {"optimizer.beta1", "betas", "with 'beta2' beside it"},
    {"optimizer.eps", "adam_eps adam_epsilon epsilon"},
    {"optimizer.weight_decay", "wd l2 decoupled_weight_decay"},
    {"optimizer.name",
     "optim optimizer_type optimizer_name optimizer.type optimizer.optimizer "
     "optimizer.class"},
    {"lr_scheduler.warmup_steps",
     "warmup warmup_iters num_warmup_steps warmup_num_steps lr_warmup_steps "
     "lr_warmup_iters"},
    {"lr_scheduler.warmup_steps", "warmup_ratio lr_warmup_fraction", "in steps"},
    {"lr_scheduler.min_lr_factor", "min_lr lr_min min_learning_rate final_lr", "a fraction of lr"},
    {"lr_scheduler.min_lr_factor", "min_lr_ratio min_lr_rate"},
    {"lr_scheduler.decay_type",
     "scheduler_type lr_scheduler_type lr_decay_style lr_schedule lr_scheduler.type "
     "lr_scheduler.name"},
    {"training.steps", "lr_decay_iters lr_decay_steps decay_iters decay_steps",
     "the decay ends with the last step"},
    {"parallelism.context_parallel_degree",
     "cp cp_size cp_degree context_parallel context_parallel_size sp sp_size "
     "sequence_parallel_size sequence_parallel_degree seq_parallel_size"},
    {"parallelism.context_parallel_scheme",
     "cp_comm_type cp_type sp_type context_parallel_type context_parallel_method "
     "context_parallel_strategy context_parallel_rotate_method parallelism.scheme"},
    {"parallelism.context_parallel_layout",
     "parallelism.layout cp_layout context_parallel_load_balancer "
     "context_parallel_load_balance"},
    {"parallelism.data_parallel_replicate_degree",
     "dp dp_size dp_degree dp_replicate data_parallel data_parallel_size "
     "data_parallel_degree ddp"},
    {"parallelism.shard",
     "zero_stage zero_optimization use_distributed_optimizer fsdp fsdp_size "
     "sharding_strategy data_parallel_shard_degree data_parallel_sharding_strategy"},
    {"parallelism.tensor_parallel_degree",
     "tp tp_size tp_degree tensor_parallel tensor_parallel_size "
     "tensor_model_parallel_size"},
    {"parallelism.pipeline_parallel_degree",
     "pp pp_size pp_degree pipeline_parallel pipeline_parallel_size "
     "pipeline_model_parallel_size"},
    {"activation_checkpoint.mode",
     "gradient_checkpointing activation_checkpointing recompute "
     "recompute_granularity recompute_activations",
     "\"full\" or \"none\""},
    {"checkpoint.interval",
     "save_interval save_steps save_every save_freq save_frequency ckpt_interval "
     "checkpoint_interval checkpoint_every"},
    {"checkpoint.keep_latest_k",
     "save_total_limit keep_last keep_last_n keep_latest max_checkpoints max_to_keep"},
    {"checkpoint.resume",
     "resume_from_checkpoint resume_from load_step ckpt_step checkpoint.load "
     "init_from"},
    {"checkpoint.folder",
     "save_dir save_path ckpt_dir ckpt_path checkpoint_dir checkpoint_path "
     "checkpoint.path checkpoint.dir checkpoint.directory checkpoint.save "
     "checkpoint.output_dir"},
    {"validation.enable", "do_eval do_validation enable_validation", "true or false"},
    {"validation.corpus",
     "eval_data eval_dataset eval_data_path eval_file val_data val_dataset val_data_path "
     "val_file valid_data valid_data_path valid_data_prefix validation_data validation_file "
     "validation_dataset",
     "a file that `longhaul tokenize` writes"},
    {"validation.freq",
     "eval_interval eval_freq eval_every eval_steps val_interval val_every val_check_interval "
     "validation_interval validation_freq validation.interval validation.every "
     "validation.frequency validation.every_n_steps",
     "steps between validations; 'steps' is how many one takes"},
    {"validation.steps",
     "eval_iters eval_batches max_eval_steps max_eval_iters val_iters val_steps val_batches "
     "limit_val_batches validation_steps validation.iters validation.num_steps "
     "validation.batches",
     "of tokens_per_step tokens in one validation"},
    {"job.output_dir",
     "out_dir output_path output_folder run_dir work_dir dump_folder job.folder "
     "job.path job.dir"},
    {"metrics.log_freq",
     "log_interval log_every log_steps logging_steps log_every_n_steps "
     "steps_per_print log_frequency metrics.freq metrics.interval"},
    {"comm.timeout_seconds",
     "timeout ddp_timeout nccl_timeout dist_timeout init_timeout_seconds "
     "train_timeout_seconds distributed_timeout"},
    {"comm.timeout_seconds", "distributed_timeout_minutes timeout_minutes", "in seconds"},
    {"comm.backend", "distributed_backend dist_backend ddp_backend communicator comm.communicator"},
    {"device.kind", "device_type accelerator device.type device.device device.name"},
    {"debug.seed", "random_seed manual_seed rng_seed data_seed init_seed"},
    {"debug.threads", "num_threads n_threads cpu_threads omp_num_threads"},
    {"debug.deterministic", "full_determinism deterministic_mode use_deterministic_algorithms"},
    {"",
     "dropout attention_dropout hidden_dropout residual_dropout embedding_dropout ffn_dropout "
     "attn_dropout resid_pdrop attn_pdrop embd_pdrop dropout_rate dropout_p",
     "there is no dropout here"},
    {"",
     "num_experts n_experts n_routed_experts num_experts_per_tok "
     "moe_top_k moe_num_experts expert_parallel_degree expert_model_parallel_size ep_size",
     "mixtures of experts are not supported"},
    {"", "lora lora_rank lora_alpha lora_r use_lora peft",
     "adapters such as LoRA are not supported"},
    {"", "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim",
     "latent attention is not supported"},
    {"", "vision_config audio_config text_config", "models of other than text are not supported"},
    {"", "mamba_proj_bias use_bias", "projections of this family have no bias here"},
    {"model.attention_sinks", "sinks use_sinks"},
    {"model.attn_logit_softcapping", "attn_logit_softcap attention_softcap"},
    {"model.final_logit_softcapping", "final_logit_softcap logit_softcap logits_soft_cap"},
    {"model.rope_scaling.factor", "rope_scaling_factor rope_factor"},
    {"", "hidden_act mlp_hidden_act mamba_hidden_act", "a family's activations are its own"},
    {"", "mamba_chunk_size chunk_size", "kernels choose the length of their chunks"},
    {"", "compile torch_compile use_compile", "there is nothing to compile here"},
};

constexpr runtime::ConfigSynonyms::Section kSections[] = {
    {"training", "train trainer training_args training_arguments"},
    {"optimizer", "optim adam adamw"},
    {"lr_scheduler", "scheduler lr_schedule lr"},
    {"data", "dataset datasets dataloader corpus"},
    {"model", "network transformer model_args model_config"},
    {"parallelism", "parallel distributed"},
    {"activation_checkpoint", "activation_checkpointing ac"},
    {"checkpoint", "checkpointing checkpoints ckpt"},
    {"validation", "eval evaluation evaluator validate validator valid val"},
    {"metrics", "logging log logger"},
    {"comm", "communication communicator nccl"},
    {"job", "run experiment"},
};

constexpr PeerValues kValues[] = {
    {"training.dtype", "bfloat16", "bf16 bf"},
    {"training.dtype", "float32", "fp32 float f32"},
    {"parallelism.context_parallel_wire_dtype", "bfloat16", "bf16 bf"},
    {"parallelism.context_parallel_wire_dtype", "float32", "fp32 float f32"},
    {"data.mask", "documents", "packed document_causal block_diagonal_causal"},
    {"data.mask", "full", "bidirectional none"},
    {"data.mask", "full_document", "block_diagonal"},
    {"data.mask", "prefix_causal", "prefix_lm"},
    {"data.mask", "causal_window", "sliding_window swa"},
    {"parallelism.context_parallel_layout", "zigzag", "head_tail headtail load_balanced"},
    {"parallelism.context_parallel_layout", "striped", "stripe interleaved"},
    {"parallelism.shard", "optimizer", "zero1 zero-1 zero_1 os distributed"},
    {"activation_checkpoint.mode", "full", "all recompute"},
    {"activation_checkpoint.mode", "selective", "attention core_attn"},
    {"activation_checkpoint.mode", "none", "off disabled"},
    {"lr_scheduler.decay_type", "cosine", "cosine_annealing cosine_with_min_lr"},
    {"comm.backend", "mpi", "gloo"},
    {"comm.backend", "loopback", "threads local"},
    {"device.kind", "cuda", "gpu"},
    {"checkpoint.resume", "auto", "latest last true"},
    {"checkpoint.resume", "never", "none false scratch"},
    {"model.layer_types", "full_attention", "full global"},
    {"model.layer_types", "sliding_attention", "sliding local sliding_window swa"},
    {"model.architecture", "llama", "llama2 llama3 LlamaForCausalLM"},
    {"model.architecture", "mistral", "MistralForCausalLM"},
    {"model.architecture", "qwen2", "qwen2.5 qwen2_5 Qwen2ForCausalLM"},
    {"model.architecture", "qwen3", "Qwen3ForCausalLM"},
    {"model.architecture", "gemma2", "gemma-2 Gemma2ForCausalLM"},
    {"model.architecture", "gemma3_text", "gemma-3 Gemma3ForCausalLM"},
    {"model.architecture", "phi3", "phi-3 phi4 phi-4 Phi3ForCausalLM"},
    {"model.architecture", "olmo2", "olmo-2 Olmo2ForCausalLM"},
    {"model.architecture", "qwen3_next", "qwen3-next Qwen3NextForCausalLM"},
    {"model.architecture", "qwen3_5", "qwen3.5 qwen3_5_text Qwen3_5ForCausalLM"},
    {"model.architecture", "granitemoehybrid", "granite granite4 GraniteMoeHybridForCausalLM"},
    {"model.architecture", "nemotron_h", "nemotron nemotron-h NemotronHForCausalLM"},
    {"model.architecture", "minimax", "MiniMaxForCausalLM"},
    {"model.architecture", "kimi_linear", "kimi kimi-linear KimiLinearForCausalLM"},
};

constexpr PeerVerbs kVerbs[] = {
    {"convert", "export import hf_export to_hf from_hf"},
    {"train", "resume continue pretrain finetune fit run start launch"},
    {"tokenize", "preprocess preprocess_data prepare prepare_data encode"},
    {"validate", "check verify lint config dry-run dryrun"},
    {"inspect", "show info dump list describe"},
    {"report", "plot summary summarize compare"},
    {"eval", "evaluate evaluation test perplexity ppl score"},
    {"bench", "benchmark profile measure"},
    {"attention", "attn replay"},
};

}  // namespace

const runtime::ConfigSynonyms& peer_words() {
  static const runtime::ConfigSynonyms words{kKeys, kSections};
  return words;
}

std::span<const PeerValues> peer_values() { return kValues; }
std::span<const PeerVerbs> peer_verbs() { return kVerbs; }

}  // namespace longhaul::launch

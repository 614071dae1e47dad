// Every key of the configuration of a run, declared and explained once.

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string_view>

#include "attention/named_masks.h"
#include "launch/config_schema_impl.h"
#include "launch/model_keys.h"
#include "launch/peer_words.h"
#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"
#include "runtime/config/toml_document.h"
#include "runtime/io/hash.h"

namespace longhaul::launch {
namespace {

constexpr const char* kReplayOnly =
    "this mask needs datasets made for one sequence, which `longhaul attention` reads and a corpus "
    "does not have";

std::vector<std::string> trainable_masks() {
  std::vector<std::string> names;
  for (const std::string& name : attention::mask_names()) {
    if (attention::mask_rule(name).trainable()) names.push_back(name);
  }
  return names;
}

std::vector<std::pair<std::string, std::string>> other_masks() {
  std::vector<std::pair<std::string, std::string>> reasons;
  for (const std::string& name : attention::mask_names()) {
    if (!attention::mask_rule(name).trainable()) reasons.emplace_back(name, kReplayOnly);
  }
  return reasons;
}

std::vector<std::string> layout_names() {
  std::vector<std::string> names;
  for (const parallel::LayoutKind kind : parallel::layout_kinds())
    names.emplace_back(parallel::name(kind));
  return names;
}

/// "`ring`, `double_ring(outer=, inner=, backward=auto|ring|burst)`, ...".
std::string schemes_reference(parallel::Family family) {
  std::string text;
  for (const std::string& name : parallel::scheme_names(family)) {
    text += text.empty() ? "`" : ", `";
    text += parallel::signature(parallel::scheme_from_name(name)) + "`";
  }
  return text;
}

/// But those of [model].
std::vector<runtime::ConfigKey> declare() {
  return {
      {LONGHAUL_KEY(job, output_dir, free),
       .explanation =
           "Folder of the run: metrics, checkpoints, the resolved configuration. In paths `~` at "
           "the start, `$NAME` and `${NAME}` are replaced, `$$` is a dollar sign; any environment "
           "variable serves, and one that is unset or empty is an error.",
       .is_path = true},

      {LONGHAUL_KEY(data, corpus, run),
       .explanation =
           "HDF5 corpus that `longhaul tokenize` wrote; its documents are packed end to end.",
       .derived_default = "none; this or `corpora` is required", .is_path = true},
      {LONGHAUL_KEY(data, corpora, run),
       .explanation =
           "Several corpora of one tokenizer in place of `corpus`: `[{path = \"a.h5\", weight = "
           "0.7}, {path = \"b.h5\", weight = 0.3}]`. A sequence is of one corpus; the share of "
           "each in any number of sequences is its weight over the sum of weights.",
       .derived_default = "none",
       .columns = {{LONGHAUL_CONFIG_COLUMN(CorpusShare, path), .explanation = "As `corpus`.",
                    .is_path = true},
                   {LONGHAUL_CONFIG_COLUMN(CorpusShare, weight),
                    .explanation = "Its share, over the sum.", .minimum = 0, .maximum = 1e12,
                    .above_minimum = true}}},
      {LONGHAUL_KEY(data, mask, meaning),
       .explanation =
           "What a token attends to; [attention/README.md](attention/README.md#masks) says it of "
           "each. `documents` is `causal_document`: earlier tokens of its document.",
       .default_value = "\"documents\"", .choices = trainable_masks(),
       .not_choices = other_masks()},
      {LONGHAUL_KEY(data, window, meaning),
       .explanation =
           "Tokens that a query sees on a side, itself included; of `full_window`, "
           "`causal_window`, `global_window`, across documents; if given, of `causal_document`, "
           "`full_document` and `shared_question`, of what else they would show.",
       .derived_default = "none", .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(data, prefix, meaning),
       .explanation = "Tokens of the prefix, of `prefix_causal` (of the sequence) and "
                      "`prefix_document` (of each document), or of each document's question, of "
                      "`shared_question`; at most seq_len.",
       .derived_default = "none", .minimum = 0, .maximum = kMaxTokens},
      {LONGHAUL_KEY(data, global, meaning),
       .explanation = "First tokens of a sequence that see everything and that everything sees, of "
                      "`global_window`; at most seq_len.",
       .derived_default = "none", .minimum = 0, .maximum = kMaxTokens},
      {LONGHAUL_KEY(data, block, meaning),
       .explanation = "Tokens of a block, of `block_causal_document`; of an answer, of "
                      "`shared_question`; of a block of `causal_blockwise`, whose blocks are the "
                      "documents without it.",
       .derived_default = "none", .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(data, positions, meaning), .before_it_existed = "\"document\"",
       .explanation = "Where the positions of the rotary embedding begin: `document`, at each "
                      "document; `sequence`, at the sequence; `auto`, at each document where the "
                      "mask stays inside documents, else at the sequence.",
       .default_value = "\"auto\"", .choices = {"auto", "document", "sequence"}},

      {LONGHAUL_KEY(training, seq_len, meaning),
       .explanation = "Tokens in a sequence, over all ranks of the context axis.", .minimum = 1,
       .maximum = kMaxTokens},
      {LONGHAUL_KEY(training, micro_batch_size, run),
       .explanation = "Sequences per data rank and pass.", .default_value = "1", .minimum = 1,
       .maximum = kMaxDegree},
      {LONGHAUL_KEY(training, tokens_per_step, run),
       .explanation =
           "Tokens of an optimizer step over the whole grid; a multiple of seq_len * "
           "micro_batch_size * data_parallel_replicate_degree. What one pass does not hold is "
           "accumulated.",
       .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(training, interleave, run),
       .explanation =
           "Passes that go through the model together, stage by stage: with 2 the exchanges of one "
           "hide behind the work of the other, and both keep their activations. Needs two passes a "
           "step; an odd last one goes alone.",
       .default_value = "1", .minimum = 1, .maximum = 2},
      {LONGHAUL_KEY(training, steps, run),
       .explanation = "Optimizer steps of the whole run, resumed parts included.", .minimum = 1,
       .maximum = kMaxTokens},
      {LONGHAUL_KEY(training, max_norm, run),
       .explanation = "Gradients are scaled down to this global norm; 0 switches clipping off.",
       .default_value = "1.0", .minimum = 0},
      {LONGHAUL_KEY(training, dtype, run),
       .explanation = "Dtype of activations; parameters, gradients and moments stay float32.",
       .default_value = "\"float32\"", .choices = {"float32", "bfloat16"}},

      {LONGHAUL_KEY(optimizer, name, meaning), .explanation = "Optimizer.",
       .default_value = "\"adamw\"", .choices = {"adamw"}},
      {LONGHAUL_KEY(optimizer, lr, run), .explanation = "Learning rate after warm-up.",
       .default_value = "3e-4", .minimum = 0},
      {LONGHAUL_KEY(optimizer, beta1, run), .explanation = "Decay of the first moment.",
       .default_value = "0.9", .minimum = 0, .maximum = 1, .below_maximum = true},
      {LONGHAUL_KEY(optimizer, beta2, run), .explanation = "Decay of the second moment.",
       .default_value = "0.95", .minimum = 0, .maximum = 1, .below_maximum = true},
      {LONGHAUL_KEY(optimizer, eps, run), .explanation = "Added to the root of the second moment.",
       .default_value = "1e-8", .minimum = 0, .above_minimum = true},
      {LONGHAUL_KEY(optimizer, weight_decay, run),
       .explanation = "Decoupled weight decay of matrices; norms and the embedding (with it a tied "
                      "head) are exempt.",
       .default_value = "0.1", .minimum = 0},

      {LONGHAUL_KEY(lr_scheduler, warmup_steps, run),
       .explanation = "Steps over which the learning rate rises linearly from 0.",
       .default_value = "0", .minimum = 0, .maximum = kMaxTokens},
      {LONGHAUL_KEY(lr_scheduler, decay_type, run),
       .explanation = "Shape of the decay from warm-up to the last step.",
       .default_value = "\"cosine\"", .choices = {"cosine"}},
      {LONGHAUL_KEY(lr_scheduler, min_lr_factor, run),
       .explanation = "The decay ends at this fraction of lr.", .default_value = "0.1",
       .minimum = 0, .maximum = 1},

      {LONGHAUL_KEY(parallelism, context_parallel_degree, run),
       .explanation = "Ranks that share a sequence; -1 takes whatever ranks are left.",
       .default_value = "-1", .minimum = 1, .maximum = kMaxDegree, .also = -1},
      {LONGHAUL_KEY(parallelism, context_parallel_scheme, run),
       .explanation =
           "How attention is spread over those ranks: " +
           schemes_reference(parallel::Family::softmax) +
           ", or `auto`, which takes ring or burst, whichever sends fewer bytes. "
           "parallel/README.md compares them, and `longhaul validate --legality` says which "
           "suits what.",
       .default_value = "\"ring\""},
      {LONGHAUL_KEY(parallelism, context_parallel_linear_scheme, run),
       .explanation =
           "How the states of linear layers go over those ranks, where the model has any: " +
           schemes_reference(parallel::Family::linear) +
           ", or `auto`, which takes one by what the states weigh and says why. All give the same "
           "answer; parallel/README.md compares them.",
       .default_value = "\"auto\""},
      {LONGHAUL_KEY(parallelism, context_parallel_switch, run),
       .explanation =
           "Changes of scheme between steps, as `5:burst,10:usp(heads=2)`: from step 5 on burst, "
           "from step 10 on usp. For comparing schemes within one run.",
       .default_value = "\"none\""},
      {LONGHAUL_KEY(parallelism, context_parallel_layout, run),
       .explanation = "Which tokens a rank holds; `zigzag` and `striped` balance a causal mask, "
                      "`document_zigzag` and `balanced` packed documents; `packed` leaves balance "
                      "to `disaggregated`.",
       .default_value = "\"zigzag\"", .choices = layout_names()},
      {LONGHAUL_KEY(parallelism, context_parallel_wire_dtype, run),
       .explanation = "Dtype in which circulating gradient accumulators travel.",
       .default_value = "\"float32\"", .choices = {"float32", "bfloat16"}},
      {LONGHAUL_KEY(parallelism, data_parallel_replicate_degree, run),
       .explanation = "Replicas of the model that take different sequences.", .default_value = "1",
       .minimum = 1, .maximum = kMaxDegree},
      {LONGHAUL_KEY(parallelism, tensor_parallel_degree, run),
       .explanation = "Ranks that share a matrix; not built yet, so only 1.", .default_value = "1",
       .minimum = 1, .maximum = kMaxDegree},
      {LONGHAUL_KEY(parallelism, pipeline_parallel_degree, run),
       .explanation = "Ranks that share the stack of layers; not built yet, so only 1.",
       .default_value = "1", .minimum = 1, .maximum = kMaxDegree},
      {LONGHAUL_KEY(parallelism, shard, run),
       .explanation =
           "What the ranks of data x context divide among them, where each would else hold all of "
           "it: `none`; `optimizer`: the optimizer's state, of which a rank then holds and updates "
           "its part (ZeRO-1). Losses are the same bit for bit, and a checkpoint of one resumes "
           "with the other.",
       .default_value = "\"none\"", .choices = {"none", "optimizer"}},

      {LONGHAUL_KEY(attention_servers, mode, run),
       .explanation =
           "Who attends, of scheme `disaggregated`: `in_place`, every rank beside its own work; "
           "`dedicated`, the last `count` ranks of the job, which hold no rows, parameters nor "
           "checkpoint: start data x context + count ranks; `external`, processes that `longhaul "
           "serve` started.",
       .default_value = "\"in_place\"", .choices = {"in_place", "dedicated", "external"}},
      {LONGHAUL_KEY(attention_servers, count, run),
       .explanation = "Ranks that only attend, of `dedicated`.", .derived_default = "none",
       .minimum = 1, .maximum = kMaxDegree},
      {LONGHAUL_KEY(attention_servers, addresses, free),
       .explanation =
           "Of `external`, one a server: `unix:PATH` or `tcp:HOST:PORT`, as `longhaul serve "
           "--listen` was given it.",
       .derived_default = "none"},
      {LONGHAUL_KEY(attention_servers, token_file, free),
       .explanation = "Of `external`: file of the token that the servers were started with; "
                      "nobody else may read it.",
       .derived_default = "none", .is_path = true},
      {LONGHAUL_KEY(attention_servers, timeout_seconds, free),
       .explanation = "Of `external`: a server that does not answer for so long has failed, and "
                      "its tasks go to the others.",
       .default_value = "60.0", .minimum = 0, .maximum = 1e6, .above_minimum = true},
      {LONGHAUL_KEY(attention_servers, buffer_bytes, run),
       .explanation = "Most bytes that a rank, or an external server, may receive in one exchange "
                      "of an attention call; what cannot keep to it is refused before anything is "
                      "sent. 0: no limit.",
       .default_value = "0", .minimum = 0, .maximum = 1e18},
      {LONGHAUL_KEY(attention_servers, measure_speeds, run),
       .explanation = "Deal work by how fast each server has attended so far, one step behind. "
                      "Who computes what then follows from times: results are as exact, but do "
                      "not repeat bit for bit.",
       .default_value = "false"},

      {LONGHAUL_KEY(activation_checkpoint, mode, run),
       .explanation =
           "What backward computes again: `full`, all from each layer's input, softmax attention "
           "and "
           "its exchanges included; `selective`, all but what attention gave, so no exchange is "
           "repeated. States of linear layers are kept with either. The bits are the same.",
       .default_value = "\"none\"", .choices = {"none", "selective", "full"}},

      {LONGHAUL_KEY(checkpoint, enable, run),
       .explanation =
           "Write checkpoints: every `interval` steps, at the end, and when told to stop.",
       .default_value = "true"},
      {LONGHAUL_KEY(checkpoint, folder, free),
       .explanation = "Where they go, inside output_dir unless absolute.",
       .default_value = "\"checkpoints\"", .is_path = true},
      {LONGHAUL_KEY(checkpoint, interval, run), .explanation = "Steps between checkpoints.",
       .default_value = "500", .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(checkpoint, keep_latest_k, run),
       .explanation = "Older checkpoints are removed after a newer one is complete; 0 keeps all.",
       .default_value = "2", .minimum = 0, .maximum = kMaxTokens},
      {LONGHAUL_KEY(checkpoint, resume, free),
       .explanation = "`auto`: from the newest checkpoint, if there is one (a damaged one is "
                      "refused, exit 65); `never`; or a step.",
       .default_value = "\"auto\"", .choices = {"auto", "never"}, .minimum = 0,
       .maximum = kMaxTokens},
      {LONGHAUL_KEY(checkpoint, initial_load_path, free),
       .explanation =
           "Weights that a run begins with where it goes on from no checkpoint of its own: a "
           "Hugging Face folder, a checkpoint, or a folder of them, whose newest is taken. Step 0, "
           "a fresh optimizer; [model] must be theirs but for what stretches them to another "
           "length.",
       .derived_default = "weights drawn from debug.seed", .is_path = true},

      {LONGHAUL_KEY(validation, enable, run),
       .explanation =
           "Measure the loss on held-out text every `freq` steps and after the last one: "
           "forward only, with training's masks, schemes and batch sizes. Training stays "
           "the same bit for bit.",
       .default_value = "false"},
      {LONGHAUL_KEY(validation, corpus, run),
       .explanation = "HDF5 corpus of the held-out text, of the training corpus's tokenizer and at "
                      "least seq_len tokens; needed when enabled.",
       .derived_default = "none", .is_path = true},
      {LONGHAUL_KEY(validation, freq, run), .explanation = "Steps between validations.",
       .default_value = "10", .minimum = 1, .maximum = kMaxTokens},
      {LONGHAUL_KEY(validation, steps, run),
       .explanation = "Steps of tokens_per_step tokens in a validation, from the corpus's "
                      "beginning and in its "
                      "order, the same ones every time; -1: the whole corpus, every token once.",
       .default_value = "-1", .minimum = 1, .maximum = kMaxTokens, .also = -1},

      {LONGHAUL_KEY(metrics, log_freq, free),
       .explanation = "Steps between console lines; metrics.jsonl records every step.",
       .default_value = "1", .minimum = 1, .maximum = kMaxTokens},

      {LONGHAUL_KEY(comm, backend, run),
       .explanation = "`mpi`: processes of mpirun or srun; `loopback`: ranks as threads of one "
                      "process; `nccl`: processes of mpirun or srun whose GPUs exchange "
                      "gradients and attention's messages without the host.",
       .default_value = "\"mpi\"", .choices = {"mpi", "loopback", "nccl"}},
      {LONGHAUL_KEY(comm, timeout_seconds, free),
       .explanation = "A wait for another rank that lasts longer ends the job with exit code 76.",
       .default_value = "300.0", .minimum = 0, .maximum = 1e6, .above_minimum = true},
      {LONGHAUL_KEY(comm, nccl_max_ctas, free),
       .explanation = "Thread blocks that each of NCCL's communicators may take from the kernels "
                      "beside it; 0 leaves the choice to NCCL. Of `nccl`.",
       .default_value = "8", .minimum = 0, .maximum = 64},
      {LONGHAUL_KEY(comm, shared_memory, free),
       .explanation = "`auto`: CPU ranks of a host lend each other memory instead of sending what "
                      "it holds, where the system lets them (the start says whether); `off`: MPI "
                      "carries all messages. Of `mpi`.",
       .default_value = "\"auto\"", .choices = {"auto", "off"}},

      {LONGHAUL_KEY(device, kind, run),
       .explanation = "What trains: `cpu`, or `cuda`: the GPUs of a host are dealt to its ranks. A "
                      "checkpoint of one resumes on the other.",
       .default_value = "\"cpu\"", .choices = {"cpu", "cuda"}},
      {LONGHAUL_KEY(device, attention, run),
       .explanation =
           "Kernels of softmax attention on `cuda`: `exact`, our own, in float32 inside; `cudnn`, "
           "cuDNN's, and what it cannot do is refused; `auto`, cuDNN's for what they can do and "
           "are "
           "faster at, else our own. The CPU has one kind.",
       .default_value = "\"auto\"", .choices = {"auto", "cudnn", "exact"}},
      {LONGHAUL_KEY(device, share, free),
       .explanation =
           "Processes may share a GPU, in turns and each with its own memory: for tests. "
           "Ranks of `loopback` share it anyway.",
       .default_value = "false"},

      {LONGHAUL_KEY(debug, seed, meaning),
       .explanation = "Seed of initial weights and of the order of documents.",
       .default_value = "1", .minimum = 0, .maximum = static_cast<double>(std::int64_t{1} << 53)},
      {LONGHAUL_KEY(debug, deterministic, free),
       .explanation = "Promise bitwise reruns on the same grid and devices, or end with 78: on "
                      "`cuda` some kernels of cuDNN do not repeat, and are then not used. All "
                      "else repeats bit for bit anyway.",
       .default_value = "false"},
      {LONGHAUL_KEY(debug, threads, free),
       .explanation = "OpenMP threads of a rank; 0: $OMP_NUM_THREADS if set, else the node's cores "
                      "shared among its ranks.",
       .default_value = "0", .minimum = 0, .maximum = 4096},
      {LONGHAUL_KEY(debug, pretend, meaning),
       .explanation =
           "What `train --pretend` sets: softmax attention only takes the time of a model, as "
           "`flops=2e9,slow=3:3` (launch/README.md), and computes nothing. None: it computes.",
       .derived_default = "none"},
  };
}

std::vector<runtime::ConfigKey> all_keys() {
  std::vector<runtime::ConfigKey> keys = declare(), model = model_keys();
  const auto data = std::ranges::find(keys, std::string_view("data"), &runtime::ConfigKey::section);
  keys.insert(data, std::make_move_iterator(model.begin()), std::make_move_iterator(model.end()));
  return keys;
}

/// What other programs write for a choice is answered with what it is called here.
std::vector<runtime::ConfigKey> with_peer_values(std::vector<runtime::ConfigKey> keys) {
  for (const PeerValues& values : peer_values()) {
    const auto key = std::ranges::find(keys, values.path, &runtime::ConfigKey::path);
    std::istringstream words(values.words);
    for (std::string word; key != keys.end() && words >> word;)
      key->not_choices.emplace_back(word, "here it is called " + runtime::quote_toml(values.value));
  }
  return keys;
}

}  // namespace

const runtime::ConfigSchema& config_schema() {
  static const runtime::ConfigSchema schema(
      with_peer_values(all_keys()),
      {"parallelism.context_parallel_degrees", "parallelism.context_parallel_nesting",
       "parallelism.context_parallel_around", "parallelism.context_parallel_backward"},
      peer_words());
  return schema;
}

std::string to_toml(const TrainConfig& config) {
  TrainConfig copy = config;
  return runtime::to_toml(config_schema(), copy);
}

std::string to_json(const TrainConfig& config) {
  TrainConfig copy = config;
  return runtime::to_json(config_schema(), copy);
}

std::uint64_t digest(const TrainConfig& config) {
  const std::string text = to_toml(config);
  return runtime::xxh3_64(std::as_bytes(std::span(text)));
}

std::string config_reference() {
  TrainConfig any;
  return runtime::config_reference(config_schema(), any);
}

}  // namespace longhaul::launch

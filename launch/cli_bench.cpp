// The command lines of `bench`.
#include <memory>

#include "attention/linear.h"
#include "launch/bench.h"
#include "launch/cli_impl.h"
#include "models/layer_types.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 32;

/// How often, and for how long.
void add_repeats(CLI::App* verb, int& repeats, double& seconds) {
  verb->add_option("--repeats", repeats, "Timed repetitions of each case, at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  verb->add_option("--seconds", seconds,
                   "Of the repetitions of a case; at least 3 are made where --repeats allows them")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
}

void add_json(CLI::App* verb, std::string& path, bool& force) {
  expand(verb->add_option("--json", path, "Write all figures to this file as well"));
  add_force(verb, "--json", force);
}

void add_bench_layouts(CLI::App& bench, Action& action) {
  const auto options = std::make_shared<BenchLayoutsOptions>();
  CLI::App* verb = add_verb(bench, action, "layouts",
                            "Balance, bytes, tiles and planning time of every token layout",
                            options, run_bench_layouts);
  expand(verb->add_option("--lengths", options->lengths_path,
                          "Document lengths, one a line, to pack into sequences"));
  verb->add_option("--mask", options->mask, "documents, or causal over whole sequences")
      ->capture_default_str();
  verb->add_option("--seq-len", options->seq_len, "Tokens of a sequence")
      ->check(CLI::Range(std::int64_t{1}, kMostTokens))
      ->capture_default_str();
  verb->add_option("--sequences", options->sequences, "Sequences to lay out, one at a time")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  verb->add_option("--ranks", options->ranks, "Context-parallel ranks")
      ->check(CLI::Range(1, 1 << 14))
      ->capture_default_str();
  verb->add_option("--scheme", options->scheme,
                   "Context-parallel scheme whose bytes to count, an expression")
      ->capture_default_str();
  verb->add_option("--heads", options->heads, "Query heads")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  verb->add_option("--kv-heads", options->kv_heads, "Key/value heads")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  verb->add_option("--head-dim", options->head_dim, "Elements of a head")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  verb->add_option("--layer-types", options->layer_types,
                   "Layers to count together: full_attention or sliding_attention of each, with "
                   "commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember(models::layer_type_names()));
  verb->add_option("--sliding-window", options->sliding_window, "Tokens, of sliding_attention")
      ->check(CLI::Range(std::int64_t{1}, kMostTokens));
}

void add_bench_attention(CLI::App& bench, Action& action) {
  const auto options = std::make_shared<BenchAttentionOptions>();
  CLI::App* verb = add_verb(bench, action, "attention",
                            "Rates of local attention calls beside a matrix product's", options,
                            run_bench_attention);
  const auto tokens = CLI::Range(std::int64_t{1}, kMostTokens);
  const auto count = CLI::Range(1, 1 << 16);
  verb->add_option("--device", options->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--kernels", options->kernels,
                   "What attends on CUDA: exact, our own; cudnn, or a refusal; auto, cuDNN's where "
                   "they can and are faster")
      ->check(CLI::IsMember({"auto", "cudnn", "exact"}))
      ->capture_default_str();
  verb->add_option("--dtype", options->dtypes,
                   "float32, bfloat16, or both with a comma between them; without it float32 on "
                   "the CPU, bfloat16 on CUDA")
      ->delimiter(',');
  verb->add_option("--mask", options->masks, "Masks, with commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember({"causal", "full", "causal_window", "documents"}))
      ->capture_default_str();
  verb->add_option("--tokens", options->tokens,
                   "Lengths, with commas between them; without it 2048 on the CPU, 8192 and 32768 "
                   "on CUDA")
      ->delimiter(',')
      ->check(tokens);
  verb->add_option("--head-dim", options->head_dims, "Elements of a head, with commas between them")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 12))
      ->capture_default_str();
  verb->add_option("--value-dim", options->value_dim,
                   "Elements of a value's head; without it those of --head-dim")
      ->check(CLI::Range(1, 1 << 12));
  verb->add_option("--heads", options->heads, "Query heads; without it 8 on the CPU, 16 on CUDA")
      ->check(count);
  verb->add_option("--kv-heads", options->kv_heads,
                   "Key/value heads, with commas between them; without it as many as query heads, "
                   "and a quarter of them")
      ->delimiter(',')
      ->check(count);
  verb->add_option("--direction", options->directions,
                   "forward, backward and forward_backward (one after the other, as in training), "
                   "with commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember({"forward", "backward", "forward_backward"}))
      ->capture_default_str();
  verb->add_option("--window", options->window, "Tokens, of causal_window")
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--document", options->document_tokens, "Tokens of each of the documents")
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--ranks", options->ranks,
                   "Time the local work of one of so many ranks, of --tokens each, that send "
                   "nothing, and beside it one call of the same area")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  verb->add_option("--scheme", options->scheme, "Context-parallel scheme of several ranks")
      ->capture_default_str();
  verb->add_option("--layout", options->layout, "Token layout of several ranks")
      ->capture_default_str();
  add_repeats(verb, options->repeats, options->seconds);
  add_json(verb, options->json_path, options->force);
}

void add_bench_linear(CLI::App& bench, Action& action) {
  const auto options = std::make_shared<BenchLinearOptions>();
  CLI::App* verb = add_verb(bench, action, "linear",
                            "Times of recurrences by length, beside the peak, softmax attention's "
                            "times, and what both send",
                            options, run_bench_linear);
  const auto tokens = CLI::Range(std::int64_t{1}, kMostTokens);
  const auto count = CLI::Range(1, 1 << 16);
  const auto kinds = attention::recurrence_kinds();
  verb->add_option("--device", options->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--dtype", options->dtype,
                   "float32 or bfloat16; without it float32 on the CPU, bfloat16 on CUDA");
  verb->add_option("--kind", options->kinds, "Recurrences, with commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>(kinds.begin(), kinds.end())))
      ->capture_default_str();
  verb->add_option("--tokens", options->tokens, "Lengths, with commas between them")
      ->delimiter(',')
      ->check(tokens)
      ->capture_default_str();
  verb->add_option("--head-dim", options->head_dim, "Elements of a head")
      ->check(CLI::Range(1, 1 << 12))
      ->capture_default_str();
  verb->add_option("--heads", options->heads,
                   "Heads of values and states; without it 2 on the CPU, 16 on CUDA")
      ->check(count);
  verb->add_option("--key-heads", options->key_heads,
                   "Heads of queries and keys; without it as many")
      ->check(count);
  verb->add_option("--direction", options->directions, "forward, backward or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"forward", "backward"}))
      ->capture_default_str();
  verb->add_option("--softmax-tokens", options->softmax_tokens,
                   "Most tokens for which softmax attention is timed too; 0: none")
      ->check(CLI::Range(std::int64_t{0}, kMostTokens))
      ->capture_default_str();
  verb->add_option("--ranks", options->ranks, "Ranks whose bytes are counted")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  verb->add_option("--scheme", options->scheme, "Of the recurrence over those ranks, or auto")
      ->capture_default_str();
  verb->add_option("--layout", options->layout, "Token layout over those ranks")
      ->capture_default_str();
  add_repeats(verb, options->repeats, options->seconds);
  add_json(verb, options->json_path, options->force);
}

void add_bench_step(CLI::App& bench, Action& action) {
  const auto options = std::make_shared<BenchStepOptions>();
  CLI::App* verb = add_verb(bench, action, "step",
                            "Time optimizer steps of a configuration's model over random tokens",
                            options, run_bench_step);
  expand(verb->add_option("CONFIG", options->config_path, "TOML file; its corpus is not read"))
      ->required();
  add_overrides(verb, options->overrides);
  verb->add_option("--steps", options->steps, "Timed steps")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  verb->add_option("--warm-up", options->warm_up, "Steps before them, which do not count")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  verb->add_option("--document", options->document_tokens,
                   "Tokens of each of the documents that a sequence packs; 0: a sequence is one")
      ->check(CLI::Range(std::int64_t{0}, kMostTokens))
      ->capture_default_str();
  verb->add_flag("--find-longest", options->find_longest,
                 "In place of training.seq_len, the longest sequence whose memory estimate fits; "
                 "where it does not run, the next shorter one that does");
  verb->add_option("--unit", options->unit, "What the longest sequence is a multiple of, tokens")
      ->check(CLI::Range(std::int64_t{1}, kMostTokens))
      ->capture_default_str();
  verb->add_option("--memory-gib", options->memory_gib,
                   "What a rank may take in the search for the longest sequence; without it what "
                   "its device or host has")
      ->check(CLI::PositiveNumber);
  add_json(verb, options->json_path, options->force);
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine and what is planned on it")
                        ->require_subcommand(1);
  const auto options = std::make_shared<BenchPeakOptions>();
  CLI::App* peak = add_verb(*bench, action, "peak",
                            "What the machine can do: multiply-adds, which MFU divides by, memory, "
                            "matrix products, messages, waking threads",
                            options, run_bench_peak);
  peak->add_option("--what", options->what, "What to measure, with commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember(kPeaks))
      ->capture_default_str();
  peak->add_option("--threads", options->threads, "Threads to use; 0: all cores")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  peak->add_option("--seconds", options->seconds, "How long to measure each")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  add_json(peak, options->json_path, options->force);
  add_bench_layouts(*bench, action);
  add_bench_attention(*bench, action);
  add_bench_linear(*bench, action);
  add_bench_step(*bench, action);
}

}  // namespace longhaul::launch

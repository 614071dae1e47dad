#include "launch/cli.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "attention/linear.h"
#include "launch/attention.h"
#include "launch/cli_impl.h"
#include "launch/comparison.h"
#include "launch/convert.h"
#include "launch/eval.h"
#include "launch/inspect.h"
#include "launch/peer_words.h"
#include "launch/report.h"
#include "launch/serve.h"
#include "launch/tokenize.h"
#include "launch/train.h"
#include "launch/validate.h"
#include "runtime/build_info.h"
#include "runtime/config/suggest.h"
#include "runtime/config/toml_document.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 40;  // as in a configuration

void add_train(CLI::App& app, Action& action) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* verb =
      add_verb(app, action, "train", "Train, or go on training, as a configuration says", options,
               run_train);
  expand(verb->add_option("CONFIG", options->config_path, "TOML file"))->required();
  add_overrides(verb, options->overrides);
  add_pretend(verb, [options](const std::string& model) {
    options->overrides.push_back("debug.pretend=" + runtime::quote_toml(model));
  });
}

void add_eval(CLI::App& app, Action& action) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* verb =
      add_verb(app, action, "eval", "Say the loss of a run's checkpoint on a corpus, by position",
               options, run_eval);
  expand(verb->add_option("CONFIG", options->config_path,
                          "TOML file of the run, as its config.toml; its output_dir holds the "
                          "checkpoint"))
      ->required();
  add_overrides(verb, options->overrides);
  expand(verb->add_option("--corpus", options->corpus,
                          "Corpus to evaluate on; without it validation.corpus where that is "
                          "enabled, else data.corpus"));
  verb->add_option("--step", options->step, "Step of the checkpoint; without it the newest")
      ->check(CLI::Range(std::int64_t{0}, kMostTokens));
  verb->add_option("--buckets", options->buckets,
                   "Positions at which buckets begin, with commas between them; without it 0, 128 "
                   "and its doubles")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{0}, kMostTokens));
  expand(verb->add_option("--tokenizer", options->tokenizer,
                          "What the corpus was made with, to tell bits a byte; of \"bytes\" that "
                          "is known"));
  expand(verb->add_option("--json", options->json_path, "Write all figures to this file as well"));
  add_force(verb, "--json", options->force);
}

void add_tokenize(CLI::App& app, Action& action) {
  const auto options = std::make_shared<TokenizeOptions>();
  CLI::App* verb = add_verb(app, action, "tokenize",
                            "Make a corpus of files, one document a file; of a .jsonl file, one "
                            "document a line; of Megatron's and llm.c's files of tokens, theirs",
                            options, run_tokenize);
  expand(verb->add_option("PATH", options->paths, "Files, and folders to take files from"))
      ->required();
  expand(verb->add_option("--output", options->output, "HDF5 corpus to write"))->required();
  add_force(verb, "--output", options->force);
  expand(
      verb->add_option("--tokenizer", options->tokenizer,
                       "\"bytes\" (the default), a SentencePiece FILE.model, a tokenizer.json, or "
                       "a folder that holds one"));
  verb->add_option_function<std::string>(
          "--invalid-utf8",
          [options](const std::string& word) {
            options->invalid_utf8 = word == "replace" ? InvalidUtf8::replace : InvalidUtf8::refuse;
          },
          "What becomes of bytes that are no UTF-8, where the tokenizer is not \"bytes\": they are "
          "refused, or replaced by U+FFFD")
      ->check(CLI::IsMember({"refuse", "replace"}))
      ->default_str("refuse");
  verb->add_option("--bos", options->bos, "Token, or its id, to put before each document")
      ->type_name("TOKEN");
  verb->add_option("--eos", options->eos, "Token, or its id, to put behind each document")
      ->type_name("TOKEN");
  verb->add_option("--vocab-size", options->vocabulary_size,
                   "Of files of tokens whose tokenizer is not named: ids are below it");
  verb->add_option("--document-start", options->document_start,
                   "Of llm.c's files of tokens: the id with which each document begins")
      ->type_name("ID");
  verb->add_option("--threads", options->threads, "Threads that encode; without it one a core")
      ->check(CLI::Range(1, 4096));
}

void add_convert(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ConvertOptions>();
  CLI::App* verb = add_verb(app, action, "convert",
                            "Turn the weights of a Hugging Face folder into a checkpoint, or those "
                            "of a checkpoint into a Hugging Face folder",
                            options, run_convert);
  expand(verb->add_option("SOURCE", options->source,
                          "Hugging Face folder (config.json beside *.safetensors), checkpoint, or "
                          "folder of checkpoints, whose newest is taken"))
      ->required();
  expand(
      verb->add_option("--output", options->output,
                       "Folder to write: of checkpoints, or Hugging Face's, which must not exist"))
      ->required();
  verb->add_option(
      "--dtype", options->dtype,
      "Of a Hugging Face folder that is written: float32, bfloat16 or float16; without "
      "it that of the folder that the weights came from, or float32");
}

void add_serve(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ServeOptions>();
  CLI::App* verb = add_verb(app, action, "serve",
                            "Be an attention server for training jobs of the same build "
                            "([attention_servers] mode = \"external\"), until told to stop",
                            options, run_serve);
  verb->add_option("--listen", options->listen,
                   "unix:PATH, or tcp:HOST:PORT; port 0 for any that is free")
      ->required();
  expand(verb->add_option("--token-file", options->token_file,
                          "File with the secret that jobs prove to know; mode 600"))
      ->required();
  verb->add_option("--threads", options->threads,
                   "Threads that compute; without it OMP_NUM_THREADS, or one a core")
      ->check(CLI::Range(1, 4096));
  add_pretend(verb, [options](const std::string& model) { options->pretend = model; });
}

int run_inspect(const InspectOptions& options) {
  std::cout << inspect(options) << "\n";
  return 0;
}

void add_inspect(CLI::App& app, Action& action) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* verb = add_verb(app, action, "inspect",
                            "Say what is in a corpus, a checkpoint or weights, and verify it",
                            options, run_inspect);
  expand(verb->add_option("PATH", options->path,
                          "HDF5 corpus, checkpoint, safetensors file or folder of them"))
      ->required();
  verb->add_flag("--brief", options->brief,
                 "Verify all the same, but leave out lists: document lengths, tensors, files and "
                 "the configuration");
  verb->add_flag(
      "--add-entropy", options->add_entropy,
      "Store the unigram entropy in a corpus of format version 1, which becomes version 2");
}

/// "(of full_window, causal_window)": the masks that take a number.
std::string masks_with(attention::MaskInput number) {
  std::string names;
  for (const attention::MaskRule& rule : attention::mask_rules()) {
    if (rule.takes(number)) names += (names.empty() ? "" : ", ") + std::string(rule.name);
  }
  return " (" + names + ")";
}

void add_mask(CLI::App* verb, MaskRequest& mask) {
  std::string names;
  for (const std::string& name : attention::mask_names())
    names += (names.empty() ? "" : ", ") + name;
  verb->add_option("--mask", mask.name, names)->capture_default_str();
  using enum attention::MaskInput;
  attention::MaskNumbers& n = mask.numbers;
  // What is no number of tokens is told by the mask; a longer run of digits would be cut short.
  const auto tokens = CLI::Range(-kMostTokens, kMostTokens);
  verb->add_option("--window", n.window,
                   "Tokens that a query sees on a side, itself included" + masks_with(window))
      ->check(tokens);
  verb->add_option("--prefix", n.prefix,
                   "First tokens that are the prefix of the sequence, or the prefix or question of "
                   "each document" +
                       masks_with(prefix))
      ->check(tokens);
  verb->add_option("--global", n.global,
                   "First tokens that see everything and that everything sees" + masks_with(global))
      ->check(tokens);
  verb->add_option("--block", n.block, "Tokens in a block" + masks_with(block))->check(tokens);
}

void add_attention(CLI::App& app, Action& action) {
  const auto options = std::make_shared<AttentionOptions>();
  CLI::App* verb =
      add_verb(app, action, "attention", "Replay one attention call from a file, spread over ranks",
               options, run_attention);
  expand(verb->add_option("CASE", options->case_path,
                          "HDF5 file with q, k, v, the datasets that the mask takes (documents, "
                          "prefixes, blocks, block_offsets, slices) and those that the kind takes "
                          "(log_decay, beta)"))
      ->required();
  expand(verb->add_option("--output", options->output_path, "HDF5 file to write"))->required();
  add_force(verb, "--output", options->force);
  std::string kinds = "softmax, or a recurrence:";
  for (const char* kind : attention::recurrence_kinds())
    kinds += (kinds.ends_with(':') ? " " : ", ") + std::string(kind);
  verb->add_option("--kind", options->kind, kinds)->capture_default_str();
  verb->add_option(
      "--scheme", options->scheme,
      "Context-parallel scheme, an expression such as 'usp(heads=2, around=burst)', or "
      "auto; without it ring, of a recurrence auto; see validate --legality");
  for (const char* old : OldSchemeOptions::kNames)  // told what replaces them
    verb->add_option(std::string("--") + old, options->old_options.of(old))->group("");
  verb->add_option("--layout", options->layout,
                   "contiguous, zigzag, striped, document_zigzag, balanced or packed")
      ->capture_default_str();
  add_mask(verb, options->mask);
  verb->add_option("--weighting", options->weighting, "softmax or sigmoid; without it softmax");
  verb->add_option("--softcap", options->softcap,
                   "Scores become c tanh(score / c); 0, or without it: none");
  verb->add_option("--bias", options->bias, "Added to a sigmoid's scores; without it 0");
  verb->add_option("--feature-map", options->feature_map,
                   "Of a recurrence's q and k: identity, relu, silu or elu1; without it identity");
  verb->add_flag("--normalize", options->normalize,
                 "Divide a recurrence's outputs by the sum of their weights");
  verb->add_option("--dtype", options->dtype, "float32 or bfloat16")->capture_default_str();
  verb->add_option("--wire-dtype", options->wire_dtype,
                   "Dtype of gradient accumulators on the wire")
      ->capture_default_str();
  verb->add_option("--communicator", options->communicator, "mpi, loopback or nccl")
      ->capture_default_str();
  verb->add_option("--ranks", options->ranks,
                   "Ranks of a loopback run; under mpirun, what it must have started")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--ranks-per-node", options->ranks_per_node,
                   "Count bytes as if so many ranks, one after another, made up a node; without it "
                   "a host is a node")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--timeout-seconds", options->timeout_seconds, "Of any wait for another rank")
      ->capture_default_str();
  verb->add_option(
          "--shared-memory", options->shared_memory,
          "auto: ranks on the CPUs of one host lend each other what rings circulate, which "
          "is then not sent; off")
      ->capture_default_str();
  verb->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
  add_pretend(verb, [options](const std::string& model) { options->pretend = model; });
}

void add_validate(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ValidateOptions>();
  CLI::App* verb = add_verb(app, action, "validate",
                            "Report every problem of a configuration, or what it resolves to",
                            options, run_validate);
  expand(verb->add_option("CONFIG", options->config_path, "TOML file"));
  add_overrides(verb, options->overrides);
  verb->add_option("--ranks", options->ranks, "Resolve the grid for so many ranks")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  verb->add_flag("--keys", options->keys, "Print the reference of all keys as a Markdown table");
  verb->add_flag("--legality", options->legality,
                 "Print which schemes suit which masks, layouts, heads and ranks");
}

void add_report(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ReportOptions>();
  CLI::App* verb =
      add_verb(app, action, "report", "Summarise a run's metrics or compare several, and plot them",
               options, run_report);
  verb->add_option("METRICS", options->metrics_paths,
                   "metrics.jsonl of the run; of several, each PATH or NAME=PATH")
      ->required()
      ->transform(CLI::Validator(
          [](std::string& argument) {
            auto [name, path] = named_path(argument);
            const std::string wrong = expand_in_place(path);
            if (wrong.empty()) argument = name.empty() ? path : name + "=" + path;
            return wrong;
          },
          ""));
  expand(verb->add_option("--baseline", options->baseline_path, "metrics.jsonl to compare with"));
  expand(verb->add_option("--plot", options->plot_path, "Write the loss curves to this SVG file"));
  expand(verb->add_option("--plot-times", options->plot_times_path,
                          "Write step times against sequence lengths to this SVG file; runs of "
                          "one name make one curve"));
  add_force(verb, "--plot or --plot-times", options->force);
  expand(
      verb->add_option("--corpus", options->corpus_path, "Corpus whose unigram entropy to show"));
  verb->add_option("--max-entropy-ratio", options->max_entropy_ratio,
                   "Fail (70) when the last loss is more than this much of the unigram entropy");
  verb->add_option("--max-parity", options->max_parity,
                   "Fail (70) when losses or gradient norms differ more than this from the "
                   "baseline's; 0: when they differ at all");
}

std::vector<std::string> verb_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(verb->get_name());
  return names;
}

/// What is wrong with a word that stands where a verb of `app` should; empty when it is one.
std::string wrong_verb(const CLI::App& app, const std::string& word) {
  const std::vector<std::string> names = verb_names(app);
  if (word.starts_with('-') || std::ranges::count(names, word) != 0) return "";
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  std::string text = "there is no verb '" + word + "'; ";
  for (const PeerVerbs& peers : peer_verbs()) {
    const std::string words = " " + std::string(peers.words) + " ";
    if (words.find(" " + word + " ") != std::string::npos &&
        std::ranges::count(names, peers.verb) != 0)
      return text + "here it is '" + peers.verb + "' (of " + all + ")";
  }
  const runtime::Suggestion near = runtime::nearest(word, names);
  return text + (near.close ? "did you mean '" + near.word + "'? (of " + all + ")"
                            : "expected one of " + all);
}

/// Of the words of a command line, the first that stands where a verb should and is none.
std::string wrong_verb(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* at = &app;
  for (int i = 1; i < argc && !verb_names(*at).empty(); ++i) {
    if (std::string text = wrong_verb(*at, argv[i]); !text.empty()) return text;
    if (*argv[i] == '-') return "";
    at = at->get_subcommand(argv[i]);
  }
  return "";
}

int explain(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {  // --help, --version
    return app.exit(error);
  }
  std::cerr << "longhaul: error: " << error.what() << "\n";
  const auto verbs = app.get_subcommands();
  std::cerr << "Run `longhaul " << (verbs.empty() ? "" : verbs.front()->get_name() + " ")
            << "--help` for what it takes.\n";
  return static_cast<int>(runtime::ExitCode::usage);
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  CLI::App app("Longhaul trains transformers on sequences longer than any one device can hold.",
               "longhaul");
  app.set_version_flag("--version", [] { return runtime::version_line(); });
  app.require_subcommand(0, 1);
  Action action;
  add_train(app, action);
  add_eval(app, action);
  add_validate(app, action);
  add_tokenize(app, action);
  add_convert(app, action);
  add_inspect(app, action);
  add_attention(app, action);
  add_bench(app, action);
  add_report(app, action);
  add_serve(app, action);

  if (const std::string wrong = wrong_verb(app, argc, argv); !wrong.empty())
    runtime::fail(runtime::ExitCode::usage, wrong, "\nRun `longhaul --help` for what it takes.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return explain(app, error);
  }
  if (!action) {
    std::cerr << app.help();
    return static_cast<int>(runtime::ExitCode::usage);
  }
  return action();
}

}  // namespace longhaul::launch

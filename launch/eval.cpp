#include "launch/eval.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numbers>

#include "launch/attention_axis.h"
#include "launch/common_ground.h"
#include "launch/config.h"
#include "launch/corpora.h"
#include "launch/metrics.h"
#include "launch/place.h"
#include "launch/row_rules.h"
#include "launch/schemes.h"
#include "launch/trainer.h"
#include "launch/validation.h"
#include "runtime/build_info.h"
#include "runtime/comm/launcher.h"
#include "runtime/comm/loopback.h"
#include "runtime/comm/mpi.h"
#include "runtime/config/toml_document.h"
#include "runtime/error.h"
#include "runtime/host_name.h"
#include "runtime/io/output_file.h"
#include "runtime/io/tokenizer.h"

namespace longhaul::launch {

using runtime::Communicator;
using runtime::Error;
using runtime::ExitCode;
using runtime::fail;

namespace {

/// What all ranks read.
struct EvalInputs {
  TrainConfig config;                              ///< resolved once the ranks are known
  std::shared_ptr<const TrainingCorpora> corpora;  ///< the one that is evaluated on
  std::shared_ptr<const ValidationData> data;
  std::int64_t vocab_size = 0;
  std::optional<std::int64_t> step;
  std::vector<std::int64_t> buckets;
};

/// What was evaluated, the same on every rank.
struct EvalResult {
  std::string checkpoint;
  std::int64_t step = 0;
  std::vector<std::string> changes;  ///< lines: what the configuration says otherwise
  std::vector<PositionLoss> buckets;
  PositionLoss all;
  double seconds = 0;
};

/// Bits that the loss takes for a byte of text: of `nats` over all labels, and the bytes of their
/// tokens.
double bits_per_byte(double nats, std::int64_t bytes) {
  return nats / std::numbers::ln2 / static_cast<double>(bytes);
}

/// Of a configuration whose only corpus is the one to evaluate on.
TrainDraft eval_draft(const EvalOptions& options) {
  TrainDraft draft = load_config(options.config_path, options.overrides, std::nullopt,
                                 options.corpus.empty() ? NamedFiles::read : NamedFiles::unread);
  TrainConfig& config = draft.config;
  if (!options.corpus.empty()) {
    config.data.corpus = options.corpus;
  } else if (config.validation.enable) {
    config.data.corpus = config.validation.corpus;
  } else if (!config.data.corpus) {
    fail(ExitCode::usage, "eval: ", options.config_path,
         " trains on several corpora and validates on none; name one with --corpus");
  }
  if (config.debug.pretend) {
    fail(ExitCode::config, "debug.pretend = ", runtime::quote_toml(*config.debug.pretend),
         ": pretended attention computes nothing whose loss could be told; leave it out");
  }
  config.data.corpora = {};
  config.validation = {};
  config.validation.steps = -1;
  return draft;
}

/// Sequences and rows are a validation's of all of the corpus.
EvalInputs eval_inputs(TrainDraft& draft, const EvalOptions& options) {
  EvalInputs inputs;
  inputs.corpora = std::make_shared<const TrainingCorpora>(draft);
  inputs.config = draft.config;
  inputs.vocab_size = model_vocabulary(draft.config, inputs.corpora->first());
  inputs.data = std::make_shared<const ValidationData>(
      runtime::Corpus::open(*draft.config.data.corpus),
      make_sequences(draft.config, inputs.corpora->all().front()), draft.config);
  inputs.step = options.step;
  inputs.buckets =
      options.buckets.empty() ? position_buckets(draft.config.training.seq_len) : options.buckets;
  return inputs;
}

void require_rising(const std::vector<std::int64_t>& buckets, std::int64_t seq_len) {
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const std::int64_t least = i == 0 ? 0 : buckets[i - 1] + 1;
    if (buckets[i] >= least && buckets[i] < seq_len && (i > 0 || buckets[i] == 0)) continue;
    fail(ExitCode::usage, "--buckets: ", buckets[i], " where number ", i + 1,
         " stands; expected 0 first, then rising positions below training.seq_len = ", seq_len);
  }
}

/// Loads the checkpoint that is asked for. Collective over the ranks that train.
void load(Trainer& trainer, const EvalInputs& inputs, EvalResult& result) {
  const runtime::Stream stream = runtime::Stream::cpu("host");
  Communicator& world = trainer.trainers();
  const std::string folder = checkpoint_folder(inputs.config);
  std::optional<runtime::Checkpoint> checkpoint;
  if (inputs.step) {
    checkpoint = runtime::Checkpoint::open(folder, *inputs.step, world, stream);
  } else {
    checkpoint = runtime::Checkpoint::open_newest(folder, world, stream);
  }
  if (!checkpoint) {
    fail(ExitCode::data, folder,
         ": holds no checkpoint; expected those of a run with job.output_dir "
         "and checkpoint.folder as they are here");
  }
  result.checkpoint = checkpoint->path().string();
  result.changes = trainer.load(*checkpoint).lines();
}

EvalResult eval_rank(const EvalInputs& inputs, Communicator& world, const Location& location,
                     std::unique_ptr<Trainer>& trainer) {
  const Place place = place_rank(inputs.config, world, location);
  TrainerInputs of;
  of.config = inputs.config;
  of.vocab_size = inputs.vocab_size;
  of.sequences = inputs.data;
  of.corpus_digest = inputs.data->corpus().digest();
  of.threads = place.threads;
  of.device = place.device;
  of.nccl = nccl_options(inputs.config, place);
  of.evaluates_only = true;
  trainer = std::make_unique<Trainer>(std::move(of), world);
  EvalResult result;
  if (!trainer->serves()) load(*trainer, inputs, result);
  trainer->begin();
  result.step = trainer->completed_steps();
  Validation validation(inputs.config, inputs.data, *trainer);
  PositionLosses losses(inputs.buckets);
  result.seconds = validation.run([] { return false; }, &losses)->seconds;
  result.buckets.assign(losses.buckets().begin(), losses.buckets().end());
  result.all = losses.all();
  return result;
}

/// Bytes of the text whose tokens have labels: of every document but its first token, or, where a
/// document's last token has one too, of the corpus but its first. Special tokens have none. None
/// where that is not known: labels that weigh or that documents' branches cut, and unknown tokens.
std::optional<std::int64_t> labelled_bytes(const EvalInputs& inputs,
                                           const runtime::Tokenizer& tokenizer) {
  const runtime::RowRules rules = row_rules(inputs.config.data);
  const runtime::Corpus& corpus = inputs.data->corpus();
  if (rules.branches || corpus.info().label_weights) return std::nullopt;
  std::int64_t bytes = 0;
  const std::span<const std::int64_t> offsets = corpus.documents();
  std::vector<std::int32_t> tokens;
  for (std::size_t document = 0; document + 1 < offsets.size(); ++document) {
    tokens.resize(static_cast<std::size_t>(offsets[document + 1] - offsets[document]));
    if (tokens.empty()) continue;
    corpus.read(offsets[document], tokens);
    const auto all = tokenizer.text_bytes(tokens);
    if (!all) return std::nullopt;
    bytes += *all;
    if (rules.labels_cross && offsets[document] > 0) continue;
    bytes -= *tokenizer.text_bytes(std::span(tokens).first(1));
  }
  return bytes;
}

/// The tokenizer that counts bytes: the corpus's where it is "bytes", else the one that is named.
std::unique_ptr<runtime::Tokenizer> counting_tokenizer(const EvalOptions& options,
                                                       const runtime::CorpusInfo& corpus) {
  const std::string what = !options.tokenizer.empty()    ? options.tokenizer
                           : corpus.tokenizer == "bytes" ? corpus.tokenizer
                                                         : "";
  if (what.empty()) return nullptr;
  auto tokenizer = runtime::make_tokenizer(what);
  if (tokenizer_identity(tokenizer->name()) != tokenizer_identity(corpus.tokenizer)) {
    fail(ExitCode::config, "--tokenizer ", options.tokenizer, " is ", tokenizer->name(), "; ",
         corpus.path.string(), " was made with ", corpus.tokenizer);
  }
  return tokenizer;
}

std::string row(const std::string& what, const PositionLoss& loss) {
  return fmt::format("{:<24} {:>15} {:>9.4f} {:>12.4g} {:>9.1f}%\n", what, grouped(loss.labels),
                     loss.loss(), std::exp(loss.loss()), 100 * loss.accuracy());
}

/// `named`: whether there is a tokenizer that could count bytes.
std::string table(const EvalInputs& inputs, const EvalResult& result, bool named,
                  std::optional<std::int64_t> bytes) {
  const runtime::CorpusInfo& corpus = inputs.data->corpus().info();
  const std::int64_t seq_len = inputs.config.training.seq_len;
  std::string text = fmt::format("checkpoint  {}\n", result.checkpoint);
  for (const std::string& line : result.changes) text += line + "\n";
  text += fmt::format(
      "corpus      {}: {} tokens of {} in {} sequences of {}, stride {}; documents as they are "
      "stored, no BOS or EOS added\n",
      corpus.path.string(), grouped(inputs.data->tokens()), corpus.tokenizer,
      grouped(inputs.data->sequences()), grouped(seq_len), grouped(seq_len));
  text += fmt::format("attention   {}, mask {}\n", schemes_text(inputs.config),
                      mask_text(inputs.config.data));
  text += fmt::format("\n{:<24} {:>15} {:>9} {:>12} {:>10}\n", "position", "labels", "loss",
                      "perplexity", "correct");
  for (std::size_t i = 0; i < result.buckets.size(); ++i) {
    const bool last = i + 1 == result.buckets.size();
    const std::int64_t end = last ? seq_len : result.buckets[i + 1].begin;
    text += row(fmt::format("{} to {}", grouped(result.buckets[i].begin), grouped(end - 1)),
                result.buckets[i]);
  }
  text += row("all", result.all);
  if (bytes) {
    text += fmt::format("\n{:.4f} bits a byte over {} bytes of text\n",
                        bits_per_byte(result.all.loss_sum, *bytes), grouped(*bytes));
  } else if (named) {
    text +=
        "\nbits a byte: not known where labels weigh, documents branch, or tokens do not say "
        "what text they stand for\n";
  } else {
    text += "\nbits a byte: name the corpus's tokenizer with --tokenizer\n";
  }
  text += fmt::format("{} tokens in {:.1f}s, {} tok/s\n", grouped(inputs.data->tokens()),
                      result.seconds,
                      grouped(static_cast<std::int64_t>(static_cast<double>(inputs.data->tokens()) /
                                                        result.seconds)));
  return text;
}

nlohmann::ordered_json json_of(const PositionLoss& loss) {
  return {{"labels", loss.labels},
          {"loss", loss.loss()},
          {"perplexity", std::exp(loss.loss())},
          {"accuracy", loss.accuracy()}};
}

std::string json_text(const EvalInputs& inputs, const EvalResult& result,
                      std::optional<std::int64_t> bytes) {
  const runtime::CorpusInfo& corpus = inputs.data->corpus().info();
  nlohmann::ordered_json json{{"record", "eval"},
                              {"build", runtime::version_line()},
                              {"checkpoint", result.checkpoint},
                              {"step", result.step},
                              {"corpus", corpus.path.string()},
                              {"corpus_digest", inputs.data->corpus().digest()},
                              {"tokenizer", corpus.tokenizer},
                              {"bos", "none added"},
                              {"seq_len", inputs.config.training.seq_len},
                              {"stride", inputs.config.training.seq_len},
                              {"scheme", schemes_text(inputs.config)},
                              {"seconds", result.seconds}};
  json["all"] = json_of(result.all);
  if (bytes) {
    json["bytes"] = *bytes;
    json["bits_per_byte"] = bits_per_byte(result.all.loss_sum, *bytes);
  }
  for (std::size_t i = 0; i < result.buckets.size(); ++i) {
    nlohmann::ordered_json bucket = json_of(result.buckets[i]);
    bucket["begin"] = result.buckets[i].begin;
    json["positions"].push_back(std::move(bucket));
  }
  return json.dump(2) + "\n";
}

EvalResult eval_loopback(const EvalInputs& inputs) {
  const int ranks = attention_axis(inputs.config).world_size();
  require_no_launcher(ranks);
  runtime::LoopbackOptions options;
  options.timeout_seconds = inputs.config.comm.timeout_seconds;
  EvalResult result;
  runtime::run_loopback(ranks, options, [&](std::unique_ptr<Communicator> world) {
    const Location location{world->rank(), runtime::host_name(), "loopback"};
    std::unique_ptr<Trainer> trainer;
    EvalResult own = eval_rank(inputs, *world, location, trainer);
    if (world->rank() == 0) result = std::move(own);
  });
  return result;
}

/// Of rank 0; none on others.
std::optional<EvalResult> eval_mpi(TrainDraft& draft, EvalInputs& inputs) {
  runtime::MpiSession session(mpi_options(draft.config));
  runtime::check_launcher(
      runtime::process_environment(),
      {session.rank(), session.size(), session.local_rank(), session.local_size()});
  std::unique_ptr<runtime::HostCommunicator> world = session.world();
  draft.config.parallelism.context_parallel_degree =
      resolve_grid(draft.config, session.size()).context;
  check_schemes(draft);  // what depends on the number of ranks
  draft.check();
  check_common_ground(draft.config, *inputs.corpora, nullptr, *world);
  inputs.config = draft.config;
  std::unique_ptr<Trainer> trainer;
  try {
    const Location location = location_of(session, inputs.config, session.mpi_version(), nullptr);
    EvalResult result = eval_rank(inputs, *world, location, trainer);
    const bool first = session.rank() == 0;
    trainer.reset();
    world.reset();
    session.close();
    if (!first) return std::nullopt;
    return result;
  } catch (...) {
    // The process ends now. Streams may be blocked on peers that are gone: nothing may wait for
    // them.
    static_cast<void>(trainer.release());
    static_cast<void>(world.release());
    throw;
  }
}

}  // namespace

int run_eval(const EvalOptions& options) {
  TrainDraft draft = eval_draft(options);
  EvalInputs inputs = eval_inputs(draft, options);
  require_rising(inputs.buckets, draft.config.training.seq_len);
  const auto tokenizer = counting_tokenizer(options, inputs.data->corpus().info());
  std::optional<runtime::OutputFile> json_file;
  if (!options.json_path.empty()) {
    json_file.emplace(options.json_path,
                      options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const std::optional<EvalResult> result =
      draft.config.comm.backend == "loopback" ? eval_loopback(inputs) : eval_mpi(draft, inputs);
  if (!result) return 0;
  std::optional<std::int64_t> bytes;
  if (tokenizer) bytes = labelled_bytes(inputs, *tokenizer);
  std::fputs(table(inputs, *result, tokenizer != nullptr, bytes).c_str(), stdout);
  if (json_file) write_output(*json_file, json_text(inputs, *result, bytes));
  return 0;
}

}  // namespace longhaul::launch

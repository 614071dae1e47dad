// What no single key can say: rules over several keys, the file system and the number of ranks.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "attention/named_masks.h"
#include "launch/attention_axis.h"
#include "launch/config.h"
#include "launch/corpora.h"
#include "launch/model.h"
#include "launch/model_keys.h"
#include "launch/pretend.h"
#include "launch/row_rules.h"
#include "models/family.h"
#include "models/layer_types.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/checkpoint.h"

namespace longhaul::launch {
namespace {

using runtime::counted;
using runtime::ExitCode;
using runtime::fail;
using runtime::GridShape;
using runtime::quote_toml;

namespace fs = std::filesystem;

std::string text_of(std::int64_t value) { return fmt::format("{}", value); }

std::string model_path(const std::string& key) { return "model." + key; }

/// What a family finds wrong goes to the draft.
class ModelJudge final : public models::Judge {
 public:
  explicit ModelJudge(TrainDraft& draft) : draft_(draft) {}
  bool good(std::initializer_list<const char*> keys) const override {
    return std::ranges::all_of(
        keys, [&](const char* key) { return draft_.good({model_path(key).c_str()}); });
  }
  void missing(const std::string& key) override { draft_.missing(model_path(key)); }
  void wrong(const char* key, const std::string& what) override {
    const std::string path = model_path(key);
    if (const runtime::TomlValue* given = draft_.given(path)) {
      draft_.key_problem(path, describe_value(*given), what);
      return;
    }
    const auto value = value_text(*config_schema().find(path), draft_.config);
    draft_.key_problem(path, value.value_or("not set"), what);
  }
  void unknown_word(const char* key, std::size_t index,
                    std::span<const std::string> words) override {
    draft_.unknown_word(model_path(key), index, words);
  }

 private:
  TrainDraft& draft_;
};

/// Keys that the family has no use for are not given.
void check_family_keys(TrainDraft& draft) {
  const std::string& architecture = draft.config.model.architecture;
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::string path = key.path();
    const std::vector<std::string> users = families_of_key(key);
    if (users.empty() || std::ranges::count(users, architecture) != 0 || !draft.is_set(path))
      continue;
    draft.key_problem(path, describe_value(*draft.given(path)),
                      fmt::format("architecture = {} has no use for it, only {}; leave it out",
                                  quote_toml(architecture), fmt::join(users, ", ")));
  }
}

/// Layers that see the last tokens of the data's mask need one that shows no later ones.
void check_layers(TrainDraft& draft) {
  if (!draft.good({"data.mask"}) || attention::mask_rule(draft.config.data.mask).causal ||
      !slides(draft))
    return;
  std::string causal;
  for (const std::string& name : attention::mask_names()) {
    if (const attention::MaskRule& rule = attention::mask_rule(name);
        rule.causal && rule.trainable())
      causal += fmt::format("{}{}", causal.empty() ? "" : ", ", name);
  }
  // By layer_types, or a pattern of the family's over the window.
  const bool typed = draft.is_set("model.layer_types");
  const char* const key = typed ? "model.layer_types" : "model.sliding_window";
  draft.key_problem(
      key,
      typed ? describe_value(*draft.given(key))
            : text_of(draft.config.model.sliding_window.value_or(0)),
      fmt::format("\"sliding_attention\" needs a causal mask, and with data.mask = {} queries see "
                  "later keys; use {}one of the masks {}",
                  quote_toml(draft.config.data.mask), typed ? "full_attention, or " : "", causal));
}

/// Numbers that the mask takes are there, where the documents of a corpus do not stand for them,
/// and no others.
void check_mask(TrainDraft& draft) {
  if (!draft.good({"data.mask"})) return;
  const DataConfig& data = draft.config.data;
  using enum attention::MaskInput;
  const attention::MaskRule& rule = attention::mask_rule(data.mask);
  const auto needs = [&](attention::MaskInput number) {
    return std::ranges::any_of(rule.needs, [&](const std::vector<attention::MaskInput>& choice) {
      return std::ranges::count(choice, number) != 0 && std::ranges::count(choice, documents) == 0;
    });
  };
  struct Number {
    const char* path;
    attention::MaskInput input;
    const std::optional<std::int64_t>& value;
    bool at_most_seq_len;
  };
  const Number numbers[] = {{"data.window", window, data.window, false},
                            {"data.prefix", prefix, data.prefix, true},
                            {"data.global", global, data.global, true},
                            {"data.block", block, data.block, false}};
  for (const auto& [path, input, value, at_most_seq_len] : numbers) {
    if (!draft.good({path})) continue;
    if (!value) {
      if (needs(input)) {
        draft.key_problem("data.mask", quote_toml(data.mask),
                          fmt::format("this mask needs {} (tokens)", path));
      }
    } else if (!rule.takes(input)) {
      draft.key_problem(
          path, text_of(*value),
          fmt::format("data.mask = {} does not use it; leave it out", quote_toml(data.mask)));
    } else if (at_most_seq_len && draft.good({"training.seq_len"}) &&
               *value > draft.config.training.seq_len) {
      draft.key_problem(
          path, text_of(*value),
          fmt::format("expected at most training.seq_len = {}", draft.config.training.seq_len));
    }
  }
}

void resolve_positions(TrainDraft& draft) {
  if (!draft.good({"data.mask", "data.positions"})) return;
  draft.config.data.positions = resolved_positions(draft.config.data);
}

void check_batch(TrainDraft& draft) {
  if (!draft.good({"training.seq_len", "training.micro_batch_size", "training.tokens_per_step",
                   "parallelism.data_parallel_replicate_degree"})) {
    return;
  }
  const TrainingConfig& training = draft.config.training;
  const std::int64_t data = draft.config.parallelism.data_parallel_replicate_degree;
  // seq_len <= 2^40 and the others <= 2^20 each: 128 bits hold the product.
  const __int128 wide = static_cast<__int128>(training.seq_len) * training.micro_batch_size * data;
  const std::string product =
      fmt::format("seq_len * micro_batch_size * data_parallel_replicate_degree = {} * {} * {}",
                  training.seq_len, training.micro_batch_size, data);
  if (wide > (std::int64_t{1} << 60)) {
    draft.key_problem("training.tokens_per_step", text_of(training.tokens_per_step),
                      "expected a multiple of " + product + ", which no run can hold");
    return;
  }
  const auto pass = static_cast<std::int64_t>(wide);
  if (training.tokens_per_step % pass == 0) {
    if (draft.good({"training.interleave"}) && training.interleave > 1 &&
        training.tokens_per_step == pass) {
      draft.key_problem(
          "training.interleave", text_of(training.interleave),
          fmt::format("a step has one pass, {} = {} tokens, and nothing to interleave it with; "
                      "expected tokens_per_step of at least {}{}",
                      product, pass, 2 * pass,
                      training.micro_batch_size > 1 ? ", or a smaller micro_batch_size" : ""));
    }
    return;
  }
  const std::int64_t below = training.tokens_per_step / pass * pass;
  const std::string legal = below == 0 ? fmt::format("{}, {}", pass, 2 * pass)
                                       : fmt::format("{}, {}", below, below + pass);
  draft.key_problem(
      "training.tokens_per_step", text_of(training.tokens_per_step),
      fmt::format("expected a multiple of {} = {}; legal nearby: {}", product, pass, legal));
}

void check_steps(TrainDraft& draft) {
  const TrainConfig& config = draft.config;
  if (draft.good({"training.steps", "lr_scheduler.warmup_steps"}) &&
      config.lr_scheduler.warmup_steps > config.training.steps) {
    draft.key_problem("lr_scheduler.warmup_steps", text_of(config.lr_scheduler.warmup_steps),
                      fmt::format("expected at most training.steps = {}", config.training.steps));
  }
  const runtime::WordOrInteger& resume = config.checkpoint.resume;
  if (draft.good({"training.steps", "checkpoint.resume"}) &&
      resume.integer > config.training.steps) {
    draft.key_problem("checkpoint.resume", text_of(resume.integer),
                      fmt::format("expected at most training.steps = {}", config.training.steps));
  }
}

void check_files(TrainDraft& draft) {
  std::error_code error;
  const auto wrong_with = [&](const std::string& corpus) -> std::string {
    const fs::file_status status = fs::status(corpus, error);
    if (!fs::exists(status)) {
      return fmt::format("no such file ({}); `longhaul tokenize PATH... --output {}` writes one",
                         fs::absolute(corpus, error).string(), corpus);
    }
    return fs::is_regular_file(status) ? "" : "expected an HDF5 file";
  };
  const auto check_corpus = [&](const char* key, const std::string& corpus) {
    if (const std::string wrong = wrong_with(corpus); !wrong.empty())
      draft.key_problem(key, quote_toml(corpus), wrong);
  };
  const DataConfig& data = draft.config.data;
  if (draft.good({"data.corpus"}) && data.corpus) check_corpus("data.corpus", *data.corpus);
  if (draft.good({"data.corpora"})) {
    for (std::size_t i = 0; i < data.corpora.rows.size(); ++i) {
      if (const std::string wrong = wrong_with(data.corpora.rows[i].path); !wrong.empty())
        draft.element_problem("data.corpora", i, wrong);
    }
  }
  const ValidationConfig& validation = draft.config.validation;
  if (draft.good({"validation.enable", "validation.corpus"}) && validation.enable) {
    if (!validation.corpus) {
      draft.key_problem("validation.enable", "true",
                        "this needs validation.corpus, a corpus of held-out text");
    } else {
      check_corpus("validation.corpus", *validation.corpus);
    }
  }
  const CheckpointConfig& checkpoint = draft.config.checkpoint;
  if (draft.good({"checkpoint.initial_load_path"}) && checkpoint.initial_load_path &&
      !fs::is_directory(*checkpoint.initial_load_path, error)) {
    // A run that has checkpoints of its own no longer needs them.
    const bool begun = draft.good({"job.output_dir", "checkpoint.folder", "checkpoint.resume"}) &&
                       checkpoint.enable && checkpoint.resume.word != "never" &&
                       !runtime::list_checkpoints(checkpoint_folder(draft.config)).empty();
    if (!begun)
      draft.key_problem("checkpoint.initial_load_path", quote_toml(*checkpoint.initial_load_path),
                        "expected a folder: Hugging Face's, or one of checkpoints");
  }
  if (draft.good({"job.output_dir"})) {
    const std::string& folder = draft.config.job.output_dir;
    const fs::file_status status = fs::status(folder, error);
    if (fs::exists(status) && !fs::is_directory(status)) {
      draft.key_problem("job.output_dir", quote_toml(folder),
                        "expected a folder, or a name that is free");
    }
  }
}

// What is wrong with the grid of `world` ranks, with the key to blame; empty when nothing.
struct GridProblem {
  const char* key = "";
  std::string message;
};

GridProblem find_grid(const TrainConfig& config, std::int64_t world, GridShape& grid) {
  const ParallelismConfig& parallelism = config.parallelism;
  grid = {parallelism.data_parallel_replicate_degree, parallelism.context_parallel_degree,
          parallelism.tensor_parallel_degree, parallelism.pipeline_parallel_degree};
  const char* const context_key = "parallelism.context_parallel_degree";
  const std::int64_t others = grid.data * grid.tensor * grid.pipeline;
  const std::int64_t servers = dedicated_servers(config), holding = world - servers;
  const std::string and_servers =
      servers == 0 ? "" : fmt::format(" + {}", counted(servers, "attention server"));
  if (grid.context == -1) {
    if (holding < others || holding % others != 0) {
      return {"parallelism.data_parallel_replicate_degree",
              fmt::format("{} {} not divide into {}{}; start {}a multiple of {} ranks",
                          counted(world, "rank"), world == 1 ? "does" : "do",
                          counted(others, "replica"), and_servers,
                          servers == 0 ? "" : fmt::format("{} and ", servers), others)};
    }
    grid.context = holding / others;
    return {};
  }
  if (grid.ranks() == holding) return {};
  std::string message =
      fmt::format("data {} * context {}{} = {}, but there {} {}; start {}", grid.data, grid.context,
                  and_servers, counted(grid.ranks() + servers, "rank"), world == 1 ? "is" : "are",
                  world, grid.ranks() + servers);
  if (holding >= others && holding % others == 0) {
    message += fmt::format(", or set {} to {} or -1", context_key, holding / others);
  }
  return {context_key, message};
}

void check_grid(TrainDraft& draft, std::optional<std::int64_t> world_size) {
  ParallelismConfig& parallelism = draft.config.parallelism;
  for (const auto& [path, degree] :
       {std::pair("parallelism.tensor_parallel_degree", parallelism.tensor_parallel_degree),
        std::pair("parallelism.pipeline_parallel_degree", parallelism.pipeline_parallel_degree)}) {
    if (draft.good({path}) && degree > 1) {
      draft.key_problem(path, text_of(degree), "this axis is not built yet; expected 1");
    }
  }
  if (!draft.good({"parallelism.context_parallel_degree",
                   "parallelism.data_parallel_replicate_degree",
                   "parallelism.tensor_parallel_degree", "parallelism.pipeline_parallel_degree",
                   "comm.backend", "attention_servers.mode", "attention_servers.count"})) {
    return;
  }
  if (!world_size) {
    if (draft.config.comm.backend == "loopback" && parallelism.context_parallel_degree == -1) {
      draft.key_problem(
          "parallelism.context_parallel_degree", "-1",
          "comm.backend = \"loopback\" starts as many ranks as the degrees say; expected at "
          "least 1");
    }
    return;
  }
  if (*world_size < 1)
    fail(ExitCode::usage, "the number of ranks is ", *world_size, "; expected at least 1");
  GridShape grid;
  const GridProblem wrong = find_grid(draft.config, *world_size, grid);
  if (!wrong.message.empty()) {
    const bool data = std::string_view(wrong.key).ends_with("replicate_degree");
    draft.key_problem(wrong.key,
                      text_of(data ? parallelism.data_parallel_replicate_degree
                                   : parallelism.context_parallel_degree),
                      wrong.message);
    return;
  }
  parallelism.context_parallel_degree = grid.context;
}

void check_device(TrainDraft& draft) {
  const TrainConfig& config = draft.config;
  if (!draft.good({"device.kind"})) return;
  if (config.device.kind == "cuda") {
    // Data ranks may have different numbers of batches, so they cannot wait for each other there.
    const std::int64_t data = config.parallelism.data_parallel_replicate_degree;
    if (draft.good(
            {"validation.enable", "comm.backend", "parallelism.data_parallel_replicate_degree"}) &&
        config.validation.enable && config.comm.backend == "loopback" && data > 1) {
      draft.key_problem(
          "validation.enable", "true",
          runtime::concat("with comm.backend = \"loopback\" on a GPU, whose ranks are threads "
                          "that load kernels in turn, it takes one data rank, not ",
                          data, "; use comm.backend = \"mpi\" or \"nccl\""));
    }
    return;
  }
  if (draft.good({"comm.backend"}) && config.comm.backend == "nccl") {
    draft.key_problem("comm.backend", "\"nccl\"",
                      "it moves memory of GPUs, and device.kind is \"cpu\"; set device.kind = "
                      "\"cuda\", or use \"mpi\" or \"loopback\"");
  }
  if (draft.good({"device.attention"}) && config.device.attention == "cudnn") {
    draft.key_problem("device.attention", "\"cudnn\"",
                      "cuDNN runs on GPUs, and device.kind is \"cpu\"; set device.kind = \"cuda\", "
                      "or use \"auto\"");
  }
}

/// A run that computes no attention has nothing to keep or to measure by.
void check_pretence(TrainDraft& draft) {
  if (!draft.good({"debug.pretend"}) || !draft.config.debug.pretend) return;
  const TrainConfig& config = draft.config;
  const char* const path = "debug.pretend";
  const std::string value = quote_toml(*config.debug.pretend);
  try {
    parse_pretending(*config.debug.pretend);
  } catch (const runtime::Error& error) {
    draft.key_problem(path, value, error.what());
  }
  const auto refuse = [&](const char* key, const std::string& of_key, const char* why) {
    draft.key_problem(key, of_key, fmt::format("with pretended attention (debug.pretend) {}", why));
  };
  if (draft.good({"checkpoint.enable"}) && config.checkpoint.enable)
    refuse("checkpoint.enable", "true", "weights mean nothing; set it to false");
  if (draft.good({"validation.enable"}) && config.validation.enable)
    refuse("validation.enable", "true", "losses mean nothing; set it to false");
  if (draft.good({"device.kind"}) && config.device.kind != "cpu")
    refuse("device.kind", quote_toml(config.device.kind), "it is \"cpu\"");
}

}  // namespace

void check_model(TrainDraft& draft) {
  if (!draft.good({"model.architecture"})) return;
  ModelJudge judge(draft);
  models::complete(draft.config.model, judge);
  check_family_keys(draft);
}

bool slides(const TrainDraft& draft) {
  if (!draft.good({"model.architecture", "model.num_hidden_layers", "model.layer_types",
                   "model.sliding_window", "model.use_sliding_window", "model.max_window_layers",
                   "model.sliding_window_pattern"}))
    return false;
  const models::Family& family = models::family_of(draft.config.model.architecture);
  return std::ranges::count(family.layer_words, models::kSlidingAttention) != 0 &&
         has_sliding_layers(draft.config.model);
}

void check_rules(TrainDraft& draft, std::optional<std::int64_t> world_size) {
  check_model(draft);
  check_layers(draft);
  check_mask(draft);
  resolve_positions(draft);
  check_batch(draft);
  check_steps(draft);
  check_corpora(draft);
  if (draft.reads_files) check_files(draft);
  check_grid(draft, world_size);
  check_device(draft);
  check_pretence(draft);
}

GridShape grid_of(const TrainConfig& config) {
  GridShape shape;
  shape.data = config.parallelism.data_parallel_replicate_degree;
  shape.context = config.parallelism.context_parallel_degree;
  return shape;
}

GridShape resolve_grid(const TrainConfig& config, std::int64_t world_size) {
  if (world_size < 1)
    fail(ExitCode::launch, "the number of ranks is ", world_size, "; expected at least 1");
  GridShape grid;
  const GridProblem wrong = find_grid(config, world_size, grid);
  if (!wrong.message.empty()) fail(ExitCode::launch, "process grid: ", wrong.message);
  return grid;
}

BatchPlan batch_plan(const TrainConfig& config) {
  const TrainingConfig& training = config.training;
  const std::int64_t sequences = training.tokens_per_step / training.seq_len;
  return {sequences, sequences / (training.micro_batch_size *
                                  config.parallelism.data_parallel_replicate_degree)};
}

std::string checkpoint_folder(const TrainConfig& config) {
  return (fs::path(config.job.output_dir) / config.checkpoint.folder).string();
}

}  // namespace longhaul::launch

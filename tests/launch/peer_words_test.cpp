#include "launch/peer_words.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "launch/config.h"
#include "models/family.h"
#include "parallel/schemes/other_names.h"
#include "parallel/schemes/scheme.h"
#include "runtime/config/draft.h"
#include "runtime/error.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

std::vector<std::string> split(const char* words) {
  std::istringstream text(words);
  std::vector<std::string> all;
  for (std::string word; text >> word;) all.push_back(word);
  EXPECT_FALSE(all.empty()) << words;
  return all;
}

bool is_normal(const std::string& word) {
  return word.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.") == std::string::npos;
}

bool has_section(const std::string& name) {
  return std::ranges::count(config_schema().sections(), name) != 0;
}

TEST(PeerWords, EveryKeyLeadsToAKeyThatExistsAndIsNoneItself) {
  std::set<std::string> names, seen;
  for (const runtime::ConfigKey& key : config_schema().keys()) names.insert(key.name);
  for (const auto& [path, words, note] : peer_words().keys) {
    if (*path == '\0') {
      EXPECT_NE(*note, '\0') << words;
    } else {
      EXPECT_NE(config_schema().find(path), nullptr) << path;
    }
    for (const std::string& word : split(words)) {
      EXPECT_TRUE(seen.insert(word).second) << word << " stands twice";
      EXPECT_TRUE(is_normal(word)) << word;
      const std::size_t dot = word.find('.');
      if (dot == std::string::npos) {
        EXPECT_FALSE(names.contains(word)) << word << " is a key";
      } else {
        EXPECT_TRUE(has_section(word.substr(0, dot))) << word;
        EXPECT_EQ(config_schema().find(word), nullptr) << word << " is a key";
      }
    }
  }
  EXPECT_GE(seen.size(), 250u);
}

TEST(PeerWords, EverySectionValueVerbAndSchemeLeadsToOneThatExists) {
  for (const auto& [section, words] : peer_words().sections) {
    EXPECT_TRUE(has_section(section)) << section;
    for (const std::string& word : split(words)) EXPECT_FALSE(has_section(word)) << word;
  }
  for (const auto& [path, value, words] : peer_values()) {
    const runtime::ConfigKey* key = config_schema().find(path);
    ASSERT_NE(key, nullptr) << path;
    std::vector<std::string> choices = key->choices;
    if (key->path() == "model.layer_types") {  // each family has its own
      for (const models::Family& family : models::families())
        choices.insert(choices.end(), family.layer_words.begin(), family.layer_words.end());
    }
    EXPECT_NE(std::ranges::count(choices, value), 0) << path << " " << value;
    for (const std::string& word : split(words))
      EXPECT_EQ(std::ranges::count(choices, word), 0) << path << " " << word;
  }
  for (const auto& [verb, words] : peer_verbs()) {
    EXPECT_EQ(test::run_longhaul({verb, "--help"}).exit_code, 0) << verb;
    const std::string word = split(words).front();
    const auto result = test::run_longhaul({word, "x"});
    EXPECT_EQ(result.exit_code, 64) << word;
    EXPECT_NE(result.err.find(fmt::format("no verb '{}'; here it is '{}'", word, verb)),
              std::string::npos)
        << result.err;
  }
  const auto schemes = parallel::scheme_names();
  for (const auto& [scheme, words, note] : parallel::other_names()) {
    EXPECT_EQ(std::ranges::count(schemes, scheme), 1) << scheme;
    for (const std::string& word : split(words)) {
      EXPECT_EQ(std::ranges::count(schemes, word), 0) << word;
      EXPECT_TRUE(is_normal(word)) << word;
    }
  }
}

/// What an override is answered with.
std::string answer(const std::string& override) {
  TrainDraft draft("file.toml");
  runtime::read_config_text(draft, "", {override});
  try {
    draft.check();
  } catch (const runtime::Error& error) {
    const std::string text = error.what(), start = "--set " + override + ": ";
    const std::size_t at = text.find(start);
    if (at != std::string::npos)
      return text.substr(at + start.size(), text.find('\n', at) - at - start.size());
  }
  return "";
}

TEST(PeerWords, LeadToOurs) {
  struct Case {
    const char *override, *answer;
  };
  for (const auto& [override, expected] : std::initializer_list<Case>{
           {"optimizer.learning_rate=1e-3",
            "unknown key 'learning_rate' in [optimizer]; here it is called 'lr'"},
           {"optimizer.Learning-Rate=1e-3",
            "unknown key 'Learning-Rate' in [optimizer]; here it is called 'lr'"},
           {"training.learning_rate=1e-3",
            "unknown key 'learning_rate' in [training]; here it is called 'lr' in [optimizer]"},
           {"model.n_layers=4",
            "unknown key 'n_layers' in [model]; here it is called 'num_hidden_layers'"},
           {"model.num_layers=4",
            "unknown key 'num_layers' in [model]; here it is called 'num_hidden_layers'"},
           {"model.d_model=4", "unknown key 'd_model' in [model]; here it is called 'hidden_size'"},
           {"model.context_length=4",
            "unknown key 'context_length' in [model]; here it is called 'seq_len' in [training]"},
           {"training.block_size=4",
            "unknown key 'block_size' in [training]; here it is called 'seq_len'"},
           {"data.block_size=4", "unknown key 'block_size' in [data]; here it is called 'block'"},
           {"training.global_batch_size=4",
            "unknown key 'global_batch_size' in [training]; here it is called 'tokens_per_step': "
            "in tokens, sequences times seq_len"},
           {"training.max_steps=4",
            "unknown key 'max_steps' in [training]; here it is called 'steps'"},
           {"training.bf16=true",
            "unknown key 'bf16' in [training]; here it is called 'dtype': write \"bfloat16\""},
           {"data.path=x",
            "unknown key 'path' in [data]; here it is called 'corpus': a file that `longhaul "
            "tokenize` writes"},
           {"checkpoint.path=x", "unknown key 'path' in [checkpoint]; here it is called 'folder'"},
           {"job.name=x", "unknown key 'name' in [job]; it belongs in [optimizer]"},
           {"model.eps=1", "unknown key 'eps' in [model]; here it is called 'rms_norm_eps'"},
           {"eval.freq=1", "unknown section [eval]; here it is called [validation]"},
           {"validation.interval=3",
            "unknown key 'interval' in [validation]; here it is called 'freq': steps between "
            "validations; 'steps' is how many one takes"},
           {"training.eval_interval=3",
            "unknown key 'eval_interval' in [training]; here it is called 'freq' in [validation]: "
            "steps between validations; 'steps' is how many one takes"},
           {"validation.eval_iters=3",
            "unknown key 'eval_iters' in [validation]; here it is called 'steps': of "
            "tokens_per_step tokens in one validation"},
           {"validation.path=x",
            "unknown key 'path' in [validation]; here it is called 'corpus': a file that `longhaul "
            "tokenize` writes"},
           {"validation.dataset=x",
            "unknown key 'dataset' in [validation]; here it is called 'corpus': a file that "
            "`longhaul tokenize` writes"},
           {"validation.max_steps=9",
            "unknown key 'max_steps' in [validation]; here it is called 'steps'"},
           {"data.seq_len=9", "unknown key 'seq_len' in [data]; it belongs in [training]"},
           {"model.dropout=1", "unknown key 'dropout' in [model]; there is no dropout here"},
           {"model.num_experts=2",
            "unknown key 'num_experts' in [model]; mixtures of experts are not supported"},
           {"training.foo=3", "unknown key 'foo' in [training]; no key has such a name"},
           {"training.fp8=1", "unknown key 'fp8' in [training]; no key has such a name"},
           {"train.steps=1", "unknown section [train]; here it is called [training]"},
           {"learning_rate=1", "expected section.key=value; here it is called 'lr' in [optimizer]"},
           {"lr=1", "expected section.key=value; it belongs in [optimizer]"},
           {"training.stepps=1", "unknown key 'stepps' in [training]; did you mean 'steps'?"}}) {
    EXPECT_EQ(answer(override), expected) << override;
  }
  for (const auto& [override, expected] : std::initializer_list<Case>{
           {"training.dtype=bf16",
            "training.dtype = \"bf16\": here it is called \"bfloat16\"; expected one of "},
           {"data.mask=bidirectional",
            "data.mask = \"bidirectional\": here it is called \"full\"; expected one of "},
           {"checkpoint.resume=latest",
            "checkpoint.resume = \"latest\": here it is called \"auto\"; "}})
    EXPECT_TRUE(answer(override).starts_with(expected)) << answer(override);
}

TEST(PeerWords, AreAnsweredInAFileToo) {
  TrainDraft draft("file.toml");
  runtime::read_config_text(draft, "learning_rate = 1\n[trainer]\nx = 1\n[model]\nn_head = 2\n");
  try {
    draft.check();
    FAIL();
  } catch (const runtime::Error& error) {
    for (const char* part :
         {"file.toml:1:1: key 'learning_rate' outside of a section; here it is called 'lr' in "
          "[optimizer]\n",
          "file.toml:2:2: unknown section [trainer]; here it is called [training]\n",
          "file.toml:5:1: unknown key 'n_head' in [model]; here it is called "
          "'num_attention_heads'"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    // The key that was meant is not missing besides.
    EXPECT_EQ(std::string(error.what()).find("missing key 'num_attention_heads'"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace longhaul::launch

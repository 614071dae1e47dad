// `longhaul eval` as a program: the loss that training's own validation found, on every grid, and
// what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/io/corpus.h"
#include "runtime/io/tokenizer.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

using nlohmann::json;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class EvalJob : public testing::Test {
 protected:
  /// Four steps, with a checkpoint of steps 2 and 4, and a validation after the last.
  EvalJob() {
    write_random_corpus(held_out(), 3'000, 61, 9);
    const ProcessResult trained = job_.run(
        0, "run",
        {"comm.backend=loopback", "parallelism.context_parallel_degree=1", "training.steps=4",
         "lr_scheduler.warmup_steps=1", "checkpoint.interval=2", "checkpoint.keep_latest_k=0",
         "validation.enable=true", "validation.freq=4", "validation.corpus=" + held_out()});
    EXPECT_EQ(trained.exit_code, 0) << trained.err;
  }
  std::string held_out() const { return job_.folder().file("held_out.h5"); }

  ProcessResult eval(const std::vector<std::string>& arguments, int ranks = 0) const {
    std::vector<std::string> words{"eval", job_.output("run", "config.toml")};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return ranks > 0 ? run_process(mpirun_command(ranks, words)) : run_longhaul(words);
  }
  json eval_json(std::vector<std::string> arguments, int ranks = 0) const {
    const std::string path = job_.folder().file("eval.json");
    arguments.insert(arguments.end(), {"--json", path, "--force"});
    const ProcessResult result = eval(arguments, ranks);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(read_text(path));
  }
  /// Of the validation that followed the last step.
  double validation_loss() const {
    std::istringstream lines(read_text(job_.output("run", "metrics.jsonl")));
    double loss = std::nan("");
    for (std::string line; std::getline(lines, line);) {
      const json row = json::parse(line);
      if (row["record"] == "validation") loss = row["loss"];
    }
    return loss;
  }

  TrainingJob job_;
};

TEST_F(EvalJob, FindsTheLossOfTheValidationOnEveryGrid) {
  const json one = eval_json({});
  EXPECT_EQ(one["step"], 4);
  EXPECT_NEAR(one["all"]["loss"].get<double>(), validation_loss(), 1e-6);
  EXPECT_NEAR(one["all"]["perplexity"].get<double>(), std::exp(validation_loss()), 1e-4);
  // Every byte but each document's first is predicted once, and a token is a byte.
  const runtime::Corpus corpus = runtime::Corpus::open(held_out());
  EXPECT_EQ(one["all"]["labels"], corpus.info().tokens - corpus.info().documents);
  EXPECT_EQ(one["bytes"], one["all"]["labels"]);
  EXPECT_NEAR(one["bits_per_byte"].get<double>(), validation_loss() / std::log(2), 1e-6);
  // Sequences of 96 tokens have no position beyond.
  ASSERT_EQ(one["positions"].size(), 1u);

  for (const auto& [ranks, sets] : std::map<int, std::vector<std::string>>{
           {3, {"parallelism.context_parallel_degree=3", "comm.backend=mpi"}},
           {0,
            {"parallelism.context_parallel_degree=2",
             "parallelism.data_parallel_replicate_degree=2",
             "parallelism.context_parallel_scheme=all_gather"}}}) {
    std::vector<std::string> arguments{"--buckets", "0,7,50"};
    for (const std::string& set : sets) arguments.insert(arguments.end(), {"--set", set});
    const json several = eval_json(arguments, ranks);
    EXPECT_NEAR(several["all"]["loss"].get<double>(), validation_loss(), 1e-6);
    ASSERT_EQ(several["positions"].size(), 3u);
    std::int64_t labels = 0;
    double nats = 0;
    for (const json& bucket : several["positions"]) {
      labels += bucket["labels"].get<std::int64_t>();
      nats += bucket["loss"].get<double>() * bucket["labels"].get<double>();
    }
    EXPECT_EQ(labels, several["all"]["labels"]);
    EXPECT_NEAR(nats / static_cast<double>(labels), validation_loss(), 1e-6);
  }
}

TEST_F(EvalJob, TakesLongerSequencesAnotherStepAndAnotherCorpus) {
  const ProcessResult longer =
      eval({"--set", "training.seq_len=384", "--step", "2", "--corpus", job_.corpus()});
  EXPECT_EQ(longer.exit_code, 0) << longer.err;
  EXPECT_TRUE(has(longer.out, "step-00000002")) << longer.out;
  EXPECT_TRUE(has(longer.out, "changed  training.seq_len from 96 to 384")) << longer.out;
  EXPECT_TRUE(has(longer.out, "12,000 tokens of bytes in 32 sequences of 384, stride 384"))
      << longer.out;
  EXPECT_TRUE(has(longer.out, "\n128 to 255 ")) << longer.out;
}

TEST_F(EvalJob, TellsBitsAByteOfTheText) {
  // Bytes e2 98 83 of a snowman, a and b; 61 ids, as many as the model has.
  json vocab{{"<s>", 0},      {"</s>", 1}, {"\xc3\xa2", 2}, {"\xc4\xba", 3},
             {"\xc4\xa5", 4}, {"a", 5},    {"b", 6}};
  for (int id = 7; id < 61; ++id) vocab["a" + std::to_string(id)] = id;
  const json tokenizer{
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}},
      {"added_tokens",
       {{{"id", 0}, {"content", "<s>"}, {"special", true}},
        {{"id", 1}, {"content", "</s>"}, {"special", true}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}}};
  const std::string path = job_.folder().write("t.json", tokenizer.dump()),
                    corpus = job_.folder().file("snow.h5");
  {
    runtime::CorpusWriter writer(corpus, 61, runtime::make_tokenizer(path)->name());
    for (int document = 0; document < 40; ++document) {
      // Five bytes with labels, and four: the first token is a byte of the snowman.
      const std::vector<std::int32_t> marked{0, 2, 3, 4, 5, 6, 1}, bare{2, 3, 4, 5, 6};
      writer.append(document % 2 == 0 ? marked : bare);
      writer.end_document();
    }
    writer.finish();
  }
  const json told = eval_json({"--corpus", corpus, "--tokenizer", path});
  EXPECT_EQ(told["all"]["labels"], 20 * 6 + 20 * 4);
  EXPECT_EQ(told["bytes"], 20 * 5 + 20 * 4);
  EXPECT_NEAR(told["bits_per_byte"].get<double>(),
              told["all"]["loss"].get<double>() / std::log(2) * 200 / 180, 1e-6);
}

TEST_F(EvalJob, RefusesAnotherModelAndWhatIsNotThere) {
  const ProcessResult other = eval({"--set", "model.num_hidden_layers=3"});
  EXPECT_EQ(other.exit_code, 78);
  EXPECT_TRUE(has(other.err, "model.num_hidden_layers = 3: the checkpoint was made with 2"))
      << other.err;
  const ProcessResult pretended =
      eval({"--set", "debug.pretend=flops=1e9", "--set", "checkpoint.enable=false", "--set",
            "validation.enable=false"});
  EXPECT_EQ(pretended.exit_code, 78);
  EXPECT_TRUE(has(pretended.err, "computes nothing whose loss could be told")) << pretended.err;
  const ProcessResult step = eval({"--step", "3"});
  EXPECT_EQ(step.exit_code, 78) << step.err;
  const ProcessResult none = eval({"--set", "job.output_dir=" + job_.folder().file("nothing")});
  EXPECT_EQ(none.exit_code, 65);
  EXPECT_TRUE(has(none.err, "holds no checkpoint")) << none.err;
  const ProcessResult buckets = eval({"--buckets", "0,9,9"});
  EXPECT_EQ(buckets.exit_code, 64);
  EXPECT_TRUE(has(buckets.err, "--buckets: 9 where number 3 stands")) << buckets.err;
}

}  // namespace
}  // namespace longhaul::test

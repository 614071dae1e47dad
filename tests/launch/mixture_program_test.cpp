// Runs of the real program on several corpora.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/io/corpus.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;

/// The job's configuration with two corpora in place of its one.
class MixedJob {
 public:
  MixedJob() {
    write_random_corpus(second_, 3'000, 61, 7);
    std::string text = read_text(job_.config());
    const std::string single = "corpus = \"" + job_.corpus() + "\"\n";
    text.replace(text.find(single), single.size(), "");
    config_ = job_.folder().write("mixed.toml", text);
  }

  std::string mixture(const std::string& weights_a, const std::string& weight_b) const {
    return "data.corpora=[{path = \"" + job_.corpus() + "\", weight = " + weights_a +
           "}, {path = \"" + second_ + "\", weight = " + weight_b + "}]";
  }
  ProcessResult run(const std::string& name, std::vector<std::string> sets, int data = 1,
                    int context = 1) const {
    std::vector<std::string> arguments = {"train", config_};
    sets.insert(sets.end(), {"job.output_dir=" + job_.output(name), "comm.backend=loopback",
                             "parallelism.data_parallel_replicate_degree=" + std::to_string(data),
                             "parallelism.context_parallel_degree=" + std::to_string(context)});
    for (const std::string& set : sets) arguments.insert(arguments.end(), {"--set", set});
    return run_longhaul(arguments);
  }
  const TrainingJob& job() const { return job_; }
  const std::string& second() const { return second_; }

 private:
  TrainingJob job_;
  std::string second_ = job_.folder().file("second.h5"), config_;
};

void expect_close(const StepTexts& actual, const StepTexts& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [step, text] : expected) {
    std::istringstream left(actual.at(step)), right(text);
    double loss = 0, reference = 0;
    left >> loss;
    right >> reference;
    EXPECT_LE(std::abs(loss - reference), 1e-5 * std::abs(reference)) << "step " << step;
  }
}

TEST(MixtureRuns, ResumeOnAnyGridAndSayWhatTheyTake) {
  const MixedJob job;
  const std::vector<std::string> sets = {job.mixture("0.7", "0.3"), "training.steps=12",
                                         "checkpoint.interval=6", "checkpoint.keep_latest_k=0"};
  const ProcessResult straight = job.run("straight", sets);
  ASSERT_EQ(straight.exit_code, 0) << straight.err;
  const StepTexts expected = job.job().steps("straight");
  ASSERT_EQ(expected.size(), 12u);
  for (const std::string& part :
       {std::string("corpus   2 corpora, 15,000 tokens, vocabulary 61, unigram entropy "),
        "\n         70.00% of sequences from " + job.job().corpus() +
            ": 12,000 tokens, 125 "
            "sequences an epoch, 0.26 epochs in 12 steps, unigram entropy ",
        "\n         30.00% of sequences from " + job.second() +
            ": 3,000 tokens, 32 sequences an "
            "epoch, 0.47 epochs in 12 steps, unigram entropy "}) {
    EXPECT_NE(straight.out.find(part), std::string::npos) << part << "\n" << straight.out;
  }
  std::istringstream lines(read_text(job.job().output("straight", "metrics.jsonl")));
  std::string header;
  std::getline(lines, header);
  const auto corpora = nlohmann::json::parse(header)["corpora"];
  ASSERT_EQ(corpora.size(), 2u);
  EXPECT_EQ(corpora[1]["path"], job.second());
  EXPECT_NEAR(corpora[1]["share"].get<double>(), 0.3, 1e-9);
  EXPECT_EQ(corpora[1]["sequences_per_epoch"], 32);

  for (const auto& [data, context] : {std::pair{2, 1}, {1, 3}}) {
    SCOPED_TRACE(data);
    const std::string name = "resumed" + std::to_string(data);
    fs::copy(job.job().output("straight"), job.job().output(name), fs::copy_options::recursive);
    fs::remove_all(job.job().checkpoint(name, 12));
    const ProcessResult resumed = job.run(name, sets, data, context);
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_NE(resumed.out.find("resumed  from the checkpoint of step 6"), std::string::npos);
    expect_close(job.job().steps(name), expected);
  }

  // Other shares would begin elsewhere in each corpus; the same ones by other weights do not.
  const auto resumed = [&](const std::string& mixture) {
    fs::remove_all(job.job().checkpoint("straight", 12));
    return job.run("straight", {mixture, "training.steps=6", "checkpoint.interval=6"});
  };
  const ProcessResult other = resumed(job.mixture("0.6", "0.4"));
  EXPECT_EQ(other.exit_code, 78) << other.out;
  EXPECT_NE(other.err.find("data.corpora = [{path = "), std::string::npos) << other.err;
  EXPECT_NE(other.err.find("weight = 0.6}"), std::string::npos) << other.err;
  EXPECT_NE(other.err.find("the checkpoint was made with [{path = "), std::string::npos)
      << other.err;
  EXPECT_EQ(resumed(job.mixture("7", "3")).exit_code, 0);
}

TEST(MixtureRuns, AreOfOneTokenizerAndVocabulary) {
  const MixedJob job;
  const auto refused = [&](std::int64_t vocabulary, const std::string& tokenizer) {
    runtime::CorpusWriter writer(job.second(), vocabulary, tokenizer);
    writer.append(std::vector<std::int32_t>(500, 3));
    writer.end_document();
    writer.finish();
    const ProcessResult result = job.run("refused", {job.mixture("1", "1")});
    EXPECT_EQ(result.exit_code, 78) << result.out;
    EXPECT_NE(result.err.find("data.corpora[1] = {path = "), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("its tokens are of tokenizer " + tokenizer + " with " +
                              std::to_string(vocabulary) + " ids, those of " + job.job().corpus() +
                              " of bytes with 61"),
              std::string::npos)
        << result.err;
  };
  refused(62, "bytes");
  refused(61, "sentencepiece:m.model:0123");
}

}  // namespace
}  // namespace longhaul::test

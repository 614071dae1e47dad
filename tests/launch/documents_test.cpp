// Documents, positions and labels: what the README's table says of a mask is what training does,
// held row by row and by a training step against a model in double precision.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "attention/mask_rules.h"
#include "launch/batches.h"
#include "launch/model.h"
#include "launch/row_rules.h"
#include "tests/support/host_tensors.h"
#include "tests/support/llama_oracle.h"
#include "tests/support/process.h"
#include "tests/support/sequence_words.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using attention::MaskInput;
using test::DocumentWords;
using test::SequenceWords;
using test::TokenDocuments;

constexpr std::int64_t kVocabulary = 31;

TokenDocuments random_tokens(std::vector<std::int64_t> lengths, unsigned seed) {
  std::mt19937_64 random(seed);
  TokenDocuments documents{{}, std::move(lengths)};
  documents.tokens.resize(static_cast<std::size_t>(
      std::accumulate(documents.lengths.begin(), documents.lengths.end(), std::int64_t{0})));
  for (std::int32_t& token : documents.tokens)
    token = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(kVocabulary));
  return documents;
}

/// A corpus in a file of its own.
struct OpenCorpus {
  explicit OpenCorpus(const TokenDocuments& documents) : corpus(open(documents)) {}
  runtime::Corpus open(const TokenDocuments& documents) {
    test::write_small_blocks(folder / "c.h5", documents.tokens, documents.lengths, 64);
    return runtime::Corpus::open(folder / "c.h5");
  }
  const test::TempDirectory folder;
  const runtime::Corpus corpus;
};

/// Every mask of [data] with every choice of positions, with numbers that suit sequences of
/// `seq_len` tokens where it takes them; once with and once without those that it may leave out.
std::vector<DataConfig> every_choice(std::int64_t seq_len) {
  std::vector<DataConfig> all;
  for (const std::string& mask : attention::mask_names()) {
    const attention::MaskRule& rule = attention::mask_rule(mask);
    if (!rule.trainable()) continue;
    DataConfig data;
    data.mask = mask;
    const std::int64_t some = std::max<std::int64_t>(1, seq_len / 5);
    if (rule.takes(MaskInput::window)) data.window = some;
    if (rule.takes(MaskInput::prefix)) data.prefix = std::min<std::int64_t>(seq_len, some + 2);
    if (rule.takes(MaskInput::global)) data.global = std::min<std::int64_t>(seq_len, 3);
    if (rule.takes(MaskInput::block)) data.block = some;
    for (const char* positions : {"auto", "document", "sequence"}) {
      data.positions = positions;
      all.push_back(data);
      if (!rule.may_have.empty()) all.back().window.reset();
      if (mask == "causal_blockwise") all.back().block.reset();  // then its blocks are documents
      if (all.back().window != data.window || all.back().block != data.block) all.push_back(data);
    }
  }
  return all;
}

std::string text_of(const DataConfig& data) {
  return fmt::format("{}, positions {}", mask_text(data), data.positions);
}

const std::string& readme() {
  static const std::string text = test::read_text(std::string(LONGHAUL_SOURCE_DIR) + "/README.md");
  return text;
}

void expect_rows(const LocalBatch& batch, int rank, const SequenceWords& words) {
  std::vector<std::int32_t> tokens, labels, positions;
  for (const std::int64_t row : batch.layout.tokens_of(rank)) {
    tokens.push_back(words.token(row));
    labels.push_back(words.label(row));
    positions.push_back(static_cast<std::int32_t>(words.position(row)));
  }
  ASSERT_EQ(batch.rows.tokens, tokens);
  ASSERT_EQ(batch.rows.labels, labels);
  ASSERT_EQ(batch.rows.positions, positions);
}

void expect_mask(const attention::Mask& mask, const SequenceWords& words) {
  const auto size = static_cast<std::size_t>(words.size());
  std::vector<std::vector<bool>> seen(size, std::vector<bool>(size));
  for (const attention::Slice& slice : mask.slices()) {
    for (std::int64_t i = slice.q_begin; i < slice.q_end; ++i) {
      for (std::int64_t j = slice.key_begin(i); j < slice.key_end(i); ++j)
        seen[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = true;
    }
  }
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) {
      ASSERT_EQ(seen[i][j], words.sees(static_cast<std::int64_t>(i), static_cast<std::int64_t>(j)))
          << "query " << i << ", key " << j;
    }
  }
}

TEST(Documents, RowsAndMasksAreWhatTheReadmeSays) {
  std::mt19937_64 random(5);
  std::int64_t sequences = 0;
  for (const std::int64_t longest : {1, 5, 30, 200}) {
    std::vector<std::int64_t> lengths;
    std::int64_t total = 0;
    while (total < 150) {
      lengths.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(longest + 1)));
      total += lengths.back();
    }
    for (const std::int64_t seq_len : {1, 7, 23, 61}) {
      // Every other corpus ends where a sequence does; the others' last sequences wrap round.
      if (longest % 2 == 0) lengths.push_back((seq_len - total % seq_len) % seq_len);
      total += longest % 2 == 0 ? lengths.back() : 0;
      const TokenDocuments documents = random_tokens(lengths, 3);
      const OpenCorpus open(documents);
      for (const DataConfig& data : every_choice(seq_len)) {
        SCOPED_TRACE(fmt::format("{}, documents up to {}, sequences of {}", text_of(data), longest,
                                 seq_len));
        const DocumentWords of_mask = test::words_of(readme(), data.mask);
        TrainConfig config = test::small_training(seq_len);
        config.data = data;
        const runtime::Sequences source = make_sequences(config, open.corpus);
        for (std::int64_t number = 0; number < source.per_epoch(); ++number) {
          if (seq_len == 1 && number % 10 != 0 && number + 1 != source.per_epoch()) continue;
          const SequenceWords words(documents, source.first_token(number), seq_len, data, of_mask);
          SCOPED_TRACE(fmt::format("from token {} of {}", source.first_token(number), total));
          // Whole, and a rank's rows that lie apart.
          BatchShape shape{data, {{std::nullopt, 1}}};
          const std::vector<std::int64_t> numbers{number};
          const LocalBatch whole = make_local_batch(source, numbers, shape);
          expect_rows(whole, 0, words);
          expect_mask(whole.masks[0], words);
          shape.layout = parallel::LayoutKind::striped;
          shape.ranks = 3;
          shape.rank = static_cast<int>(number % 3);
          expect_rows(make_local_batch(source, numbers, shape), shape.rank, words);
          if (HasFatalFailure()) return;
          ++sequences;
        }
      }
    }
  }
  std::printf("%ld sequences\n", static_cast<long>(sequences));
  EXPECT_GT(sequences, 5000);
}

TEST(Documents, TheTableNamesEveryMaskThatTrains) {
  for (const attention::MaskRule& rule : attention::mask_rules()) {
    if (!rule.trainable()) continue;
    const DocumentWords words = test::words_of(readme(), rule.name);
    EXPECT_EQ(words.crosses, rule.scope == attention::MaskScope::sequence) << rule.name;
    if (*rule.alias != '\0') test::words_of(readme(), rule.alias);
  }
}

// ---- a training step
// --------------------------------------------------------------------------------------

struct Step {
  double loss = 0;
  std::int64_t labels = 0;
  double slope = 0;        ///< of the loss along direction(); in training, from the gradient
  double slope_terms = 0;  ///< of training: its terms' magnitudes
};

/// Weights far enough from zero that every position and every pair matters.
double weight(const parallel::Parameter& parameter, double random) {
  return parameter.sizes.size() == 1 ? 1 + random / 2 : random / 2;
}
/// What the loss's slope is measured along.
std::vector<double> direction(const std::string& name, std::size_t elements) {
  const unsigned seed = std::accumulate(name.begin(), name.end(), 1000u);
  return test::random_values(static_cast<std::int64_t>(elements), seed);
}

ModelConfig oracle_config(ModelConfig model) {
  model.vocab_size = kVocabulary;
  return model;
}

/// The first step of training, from weights that the oracle knows.
Step train_step(const TrainConfig& config, const runtime::Corpus& corpus,
                test::NamedValues& weights) {
  Step step;
  const auto ranks = static_cast<int>(config.parallelism.context_parallel_degree);
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    TrainerInputs inputs;
    inputs.config = config;
    inputs.vocab_size = kVocabulary;
    inputs.sequences = std::make_shared<const runtime::Sequences>(make_sequences(config, corpus));
    Trainer trainer(std::move(inputs), *world);
    trainer.initialise();
    const runtime::Stream stream = runtime::Stream::cpu("host");
    unsigned number = 0;
    test::NamedValues values;
    for (const parallel::Parameter& parameter : trainer.store().table().parameters()) {
      std::vector<double>& own = values[parameter.name] =
          test::random_values(parameter.range.elements(), ++number, true);
      for (double& value : own) value = weight(parameter, value);
      const runtime::Tensor source =
          test::make_tensor(own, {parameter.range.elements()}, runtime::DType::float32, stream);
      runtime::copy(source,
                    trainer.store().values().slice(0, parameter.range.begin, parameter.range.end),
                    stream);
    }
    stream.synchronize(runtime::deadline_in(60));
    trainer.store().values_changed();
    const StepResult result = trainer.step();
    double slope = 0, terms = 0;
    for (const auto& [name, own] : values) {
      const auto along = direction(name, own.size());
      const auto gradient = test::read(trainer.store().gradient(name), stream);
      for (std::size_t i = 0; i < along.size(); ++i) {
        slope += along[i] * gradient[i];
        terms += std::abs(along[i] * gradient[i]);
      }
    }
    if (world->rank() != 0) return;
    step = {result.loss, result.labels, slope, terms};
    weights = std::move(values);
  });
  return step;
}

/// The same from the README's words, in double precision, its slope by central differences.
Step oracle_step(const TrainConfig& config, const TokenDocuments& documents,
                 const std::vector<std::int64_t>& begins, const test::NamedValues& weights) {
  const DocumentWords of_mask = test::words_of(readme(), config.data.mask);
  const ModelConfig llama = oracle_config(config.model);
  std::vector<test::OracleBatch> batches;
  std::vector<SequenceWords> words;
  Step step;
  for (const std::int64_t begin : begins)
    words.emplace_back(documents, begin, config.training.seq_len, config.data, of_mask);
  for (const SequenceWords& sequence : words) {
    test::OracleBatch batch;
    for (std::int64_t row = 0; row < sequence.size(); ++row) {
      batch.tokens.push_back(sequence.token(row));
      batch.labels.push_back(sequence.label(row));
      batch.positions.push_back(sequence.position(row));
      step.labels += batch.labels.back() >= 0 ? 1 : 0;
    }
    batch.sees = [&](std::int64_t layer, std::size_t query, std::size_t key) {
      const auto i = static_cast<std::int64_t>(query), j = static_cast<std::int64_t>(key);
      const auto& types = config.model.layer_types;
      const bool slides =
          !types.empty() && types[static_cast<std::size_t>(layer)] == "sliding_attention";
      return sequence.sees(i, j) && (!slides || sequence.sees(i, j, *config.model.sliding_window));
    };
    batches.push_back(std::move(batch));
  }
  const auto loss_at = [&](double shift) {
    test::NamedValues moved = weights;
    for (auto& [name, own] : moved) {
      const auto along = direction(name, own.size());
      for (std::size_t i = 0; i < own.size(); ++i) own[i] += shift * along[i];
    }
    double sum = 0;
    for (const test::OracleBatch& batch : batches) sum += test::oracle_loss(llama, moved, batch);
    return sum / static_cast<double>(step.labels);
  };
  constexpr double kShift = 1e-4;
  step.loss = loss_at(0);
  step.slope =
      (8 * (loss_at(kShift) - loss_at(-kShift)) - (loss_at(2 * kShift) - loss_at(-2 * kShift))) /
      (12 * kShift);
  return step;
}

/// One step over a whole epoch, on one rank and over three.
void expect_step(TrainConfig config, const TokenDocuments& documents,
                 const runtime::Corpus& corpus) {
  const runtime::Sequences source = make_sequences(config, corpus);
  config.training.tokens_per_step = source.per_epoch() * config.training.seq_len;
  std::vector<std::int64_t> begins;
  for (std::int64_t number = 0; number < source.per_epoch(); ++number)
    begins.push_back(source.first_token(number));
  test::NamedValues weights;
  const Step one = train_step(config, corpus, weights);
  const Step expected = oracle_step(config, documents, begins, weights);
  EXPECT_EQ(one.labels, expected.labels);
  EXPECT_NEAR(one.loss, expected.loss, 1e-6 * expected.loss);
  EXPECT_NEAR(one.slope, expected.slope, 1e-6 * one.slope_terms);
  config.parallelism.context_parallel_degree = 3;
  const Step three = train_step(config, corpus, weights);
  EXPECT_EQ(three.labels, expected.labels);
  EXPECT_NEAR(three.loss, expected.loss, 1e-6 * expected.loss);
}

constexpr std::int64_t kSeqLen = 23;
/// Sequences of 23: the first document ends within one, the second where one does, the third fills
/// two and more, then documents of one token and none; what is left wraps round.
const std::vector<std::int64_t> kCut{14, 0, 9, 60, 1, 1, 0, 5, 17};
/// The same, and nothing is left: the corpus ends where a sequence does.
const std::vector<std::int64_t> kWhole{14, 0, 9, 60, 1, 1, 0, 5, 2};
static_assert((14 + 9 + 60 + 1 + 1 + 5 + 2) % kSeqLen == 0);

TEST(Documents, ATrainingStepIsTheOraclesForEveryMaskAndPositions) {
  for (const auto& lengths : {kCut, kWhole}) {
    const TokenDocuments documents = random_tokens(lengths, 9);
    const OpenCorpus open(documents);
    for (const DataConfig& data : every_choice(kSeqLen)) {
      SCOPED_TRACE(fmt::format("{} of {} tokens", text_of(data), documents.tokens.size()));
      TrainConfig config = test::small_training(kSeqLen);
      config.data = data;
      expect_step(config, documents, open.corpus);
    }
  }
}

TEST(Documents, SlidingLayersKeepTheMasksPositionsAndLabels) {
  const TokenDocuments documents = random_tokens(kCut, 9);
  const OpenCorpus open(documents);
  int masks = 0;
  for (const DataConfig& data : every_choice(kSeqLen)) {
    if (data.positions != "auto" || !attention::mask_rule(data.mask).causal) continue;
    SCOPED_TRACE(text_of(data));
    TrainConfig config = test::small_training(kSeqLen);
    config.data = data;
    config.model.layer_types = {"sliding_attention", "full_attention"};
    config.model.sliding_window = 3;  // less than data.window
    expect_step(config, documents, open.corpus);
    config.model.sliding_window = 9;  // more
    expect_step(config, documents, open.corpus);
    ++masks;
  }
  EXPECT_EQ(masks, 10);
}

}  // namespace
}  // namespace longhaul::launch

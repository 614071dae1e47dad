#include "models/family.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::DType;
using runtime::Tensor;
using test::document_batch;
using test::NamedValues;
using test::OracleBatch;
using test::read;
using test::read_bytes;
using test::relative_error;
using test::Rig;
using test::sliding_config;
using test::small_config;
using test::with_rigs;

constexpr double kLossBound = 3e-6;
constexpr double kGradientBound = 1e-5;  // between any two ways to compute the same step in fp32

void expect_gradients(const NamedValues& actual, const NamedValues& expected, double bound) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected) {
    EXPECT_LE(relative_error(actual.at(name), values), bound) << name;
  }
}

class Tying : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Llama, Tying, ::testing::Bool());

TEST_P(Tying, LossAndEveryGradientMatchDifferencesOfTheOracle) {
  const ModelConfig config = small_config(GetParam());
  const OracleBatch batch = document_batch(config, {5, 1, 6}, 3);
  with_rigs(1, config, {}, [&](Rig& rig) {
    const double scale = 1.0 / 9;
    const Tensor loss = rig.forward_backward(rig.use(batch), {scale, {}});
    const NamedValues parameters = rig.parameters();
    const double expected = test::oracle_loss(config, parameters, batch);
    EXPECT_NEAR(read(loss, rig.stream)[0], expected, kLossBound * expected);
    NamedValues gradients = test::oracle_gradients(config, parameters, batch);
    for (auto& [name, values] : gradients) {
      for (double& value : values) value *= scale;
    }
    expect_gradients(rig.gradients(), gradients, kGradientBound);
  });
}

TEST(Llama, WeightedLossAndGradientsMatchDifferencesOfTheOracle) {
  const ModelConfig config = small_config();
  OracleBatch batch = document_batch(config, {5, 1, 6, 9}, 3);
  for (std::size_t row = 0; row < batch.tokens.size(); ++row)
    batch.label_weights.push_back(std::vector{0.0, 1.0, 2.5, 0.125}[row % 4]);
  NamedValues expected;
  double expected_loss = 0;
  for (const int ranks : {1, 3}) {
    std::mutex mutex;
    double loss = 0, evaluated = 0;
    NamedValues gradients;
    with_rigs(ranks, config, {.head_chunk_rows = 2}, [&](Rig& rig) {
      const Batch mine = rig.use(batch);
      const double evaluated_here = read(rig.evaluate(mine).loss_sum, rig.stream)[0];
      const double here = read(rig.forward_backward(mine, {1.0 / 7, {}}), rig.stream)[0];
      const NamedValues own = rig.gradients();
      const std::lock_guard lock(mutex);
      loss += here;
      evaluated += evaluated_here;
      for (const auto& [name, values] : own) {
        auto& total = gradients[name];
        total.resize(values.size());
        for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
      }
      if (!expected.empty()) return;
      expected_loss = test::oracle_loss(config, rig.parameters(), batch);
      expected = test::oracle_gradients(config, rig.parameters(), batch);
      for (auto& [name, values] : expected) {
        for (double& value : values) value /= 7;
      }
    });
    EXPECT_NEAR(loss, expected_loss, kLossBound * expected_loss);
    EXPECT_NEAR(evaluated, expected_loss, kLossBound * expected_loss);
    expect_gradients(gradients, expected, kGradientBound);
  }
}

TEST_P(Tying, BFloat16IsWithinItsRounding) {
  // Parameters are exact in bfloat16. A value passes about ten roundings a layer forward and ten
  // back, each of at most 2^-9 relative; independent errors add like their square root.
  const ModelConfig config = small_config(GetParam(), DType::bfloat16);
  const OracleBatch batch = document_batch(config, {5, 1, 6}, 3);
  with_rigs(1, config, {}, [&](Rig& rig) {
    const Tensor loss = rig.forward_backward(rig.use(batch), {1, {}});
    const NamedValues parameters = rig.parameters();
    const double roundings = 20.0 * static_cast<double>(config.num_hidden_layers) + 4;
    const double bound = 0x1p-8 * std::sqrt(roundings);
    const double expected = test::oracle_loss(config, parameters, batch);
    EXPECT_NEAR(read(loss, rig.stream)[0], expected, bound * expected);
    expect_gradients(rig.gradients(), test::oracle_gradients(config, parameters, batch), bound);
  });
}

TEST_P(Tying, EvaluationAndLogits) {
  const ModelConfig config = small_config(GetParam());
  const OracleBatch batch = document_batch(config, {7, 4}, 5);
  with_rigs(1, config, {.head_chunk_rows = 3}, [&](Rig& rig) {
    const Batch mine = rig.use(batch);
    const NamedValues parameters = rig.parameters();
    const auto expected = test::oracle_logits(config, parameters, batch);
    const Tensor logits = rig.logits(mine, 0, 11);
    EXPECT_LE(relative_error(read(logits, rig.stream), expected), kLossBound);
    const Tensor two = rig.logits(mine, 4, 6);
    EXPECT_LE(relative_error(read(two, rig.stream),
                             {expected.begin() + 4 * 17, expected.begin() + 6 * 17}),
              kLossBound);

    const Evaluation evaluation = rig.evaluate(mine);
    const double loss = test::oracle_loss(config, parameters, batch);
    EXPECT_NEAR(read(evaluation.loss_sum, rig.stream)[0], loss, kLossBound * loss);
    const auto correct = read(evaluation.row_correct, rig.stream);
    double rows = 0;
    for (const double row : read(evaluation.row_loss, rig.stream)) rows += row;
    EXPECT_NEAR(rows, loss, kLossBound * loss);
    for (std::size_t row = 0; row < 11; ++row) {
      const auto line = expected.begin() + static_cast<std::ptrdiff_t>(row) * 17;
      const bool best =
          batch.labels[row] >= 0 && std::max_element(line, line + 17) == line + batch.labels[row];
      EXPECT_EQ(correct[row], best ? 1 : 0) << row;
    }
  });
}

TEST(Llama, RecomputationIsBitwiseEqual) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const ModelConfig config = small_config(false, dtype);
    const OracleBatch batch = document_batch(config, {9, 30, 1}, 7);
    std::vector<std::byte> losses[3], gradients[3];
    for (const Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
      with_rigs(1, config, {.recompute = mode}, [&](Rig& rig) {
        const auto index = static_cast<std::size_t>(mode);
        losses[index] = read_bytes(rig.forward_backward(rig.use(batch), {0.1, {}}), rig.stream);
        gradients[index] = read_bytes(rig.store.gradients(), rig.stream);
      });
    }
    for (const int recomputed : {1, 2}) {
      EXPECT_EQ(losses[0], losses[recomputed]);
      EXPECT_EQ(gradients[0], gradients[recomputed]);
    }
  }
}

TEST(Llama, RecomputationHoldsLessMemory) {
  const ModelConfig config = small_config();
  const OracleBatch batch = document_batch(config, {400}, 7);
  std::int64_t peak[3] = {};
  for (const Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
    with_rigs(1, config, {.recompute = mode, .head_chunk_rows = 8}, [&](Rig& rig) {
      const Batch mine = rig.use(batch);
      rig.stream.reset_peak();
      const Tensor loss = rig.forward_backward(mine, {1, {}});
      peak[static_cast<std::size_t>(mode)] = rig.stream.memory().peak_bytes;
    });
  }
  EXPECT_LT(peak[1], peak[0]);
  EXPECT_LT(peak[2], peak[1]);
}

TEST(Llama, RerunsAndThreadsAreBitwiseEqual) {
  const ModelConfig config = small_config();
  const OracleBatch batch = document_batch(config, {100, 33}, 7);
  std::vector<std::byte> first;
  for (const int threads : {1, 2, 2}) {
    with_rigs(
        1, config, {},
        [&](Rig& rig) {
          const Tensor loss = rig.forward_backward(rig.use(batch), {0.1, {}});
          const auto gradients = read_bytes(rig.store.gradients(), rig.stream);
          if (first.empty()) first = gradients;
          EXPECT_EQ(gradients, first);
        },
        threads);
  }
}

TEST(Llama, TwoMicroBatchesEqualOneBatchOfBoth) {
  const ModelConfig config = small_config();
  const OracleBatch both = document_batch(config, {8, 13}, 11);
  const auto part = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
    const auto cut = [&](const std::vector<std::int64_t>& v) {
      return std::vector<std::int64_t>(v.begin() + begin, v.begin() + end);
    };
    return OracleBatch{cut(both.tokens), cut(both.labels), cut(both.positions),
                       cut(both.documents)};
  };
  NamedValues expected;
  double loss = 0;
  with_rigs(1, config, {}, [&](Rig& rig) {
    loss = read(rig.forward_backward(rig.use(both), {1.0 / 19, {}}), rig.stream)[0];
    expected = rig.gradients();
  });
  with_rigs(1, config, {}, [&](Rig& rig) {
    const Tensor a = rig.forward_backward(rig.use(part(0, 8)), {1.0 / 19, {}});
    const Tensor b = rig.forward_backward(rig.use(part(8, 21)), {1.0 / 19, {}});
    EXPECT_NEAR(read(a, rig.stream)[0] + read(b, rig.stream)[0], loss, kLossBound * loss);
    expect_gradients(rig.gradients(), expected, kLossBound);
  });
}

TEST_P(Tying, AStepOverwritesTheGradientsOfTheOneBefore) {
  const ModelConfig config = small_config(GetParam());
  const OracleBatch before = document_batch(config, {8, 13}, 11),
                    first = document_batch(config, {5, 1, 6}, 3),
                    second = document_batch(config, {17}, 5);
  const ModelOptions options{.head_chunk_rows = 5};
  for (const bool together : {false, true}) {
    const auto step = [&](Rig& rig) {
      const Batch batches[] = {rig.use(first), rig.use(second)};
      if (together) {
        EXPECT_EQ(rig.model.forward_backward(rig.resources, batches, {0.1, {}}).size(), 2u);
      } else {
        for (const Batch& batch : batches)
          EXPECT_FALSE(rig.forward_backward(batch, {0.1, {}}).empty());
      }
      return read_bytes(rig.store.gradients(), rig.stream);
    };
    std::vector<std::byte> fresh;
    with_rigs(1, config, options, [&](Rig& rig) { fresh = step(rig); });
    with_rigs(1, config, options, [&](Rig& rig) {
      const Tensor loss = rig.forward_backward(rig.use(before), {1, {}});
      rig.store.drop_gradients();
      EXPECT_EQ(step(rig), fresh) << (together ? "together" : "one after the other");
      EXPECT_NE(step(rig), fresh) << "passes of the same step add";
    });
  }
}

TEST(Llama, GradientGroupsCompleteInReverseAndCoverEverything) {
  const ModelConfig config = small_config();
  const OracleBatch batch = document_batch(config, {12}, 11);
  with_rigs(1, config, {}, [&](Rig& rig) {
    std::vector<parallel::ElementRange> ranges;
    std::vector<Tensor> seen;
    const auto on_gradients = [&](parallel::ElementRange range) {
      ranges.push_back(range);
      // What the stream holds at this point must be final.
      seen.emplace_back(std::initializer_list<std::int64_t>{range.elements()}, DType::float32,
                        rig.stream);
      copy(rig.store.gradients().slice(0, range.begin, range.end), seen.back(), rig.stream);
    };
    const Tensor loss = rig.forward_backward(rig.use(batch), {1, on_gradients});
    ASSERT_EQ(ranges.size(), 4u);  // head, two layers, embedding
    std::int64_t end = rig.store.table().elements();
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(ranges[i].end, end);
      end = ranges[i].begin;
      EXPECT_EQ(
          read_bytes(seen[i], rig.stream),
          read_bytes(rig.store.gradients().slice(0, ranges[i].begin, ranges[i].end), rig.stream));
    }
    EXPECT_EQ(end, 0);
  });
}

/// Losses and gradients of any number of ranks, on any layout, as on one.
void expect_same_over_ranks(const ModelConfig& config, const OracleBatch& batch) {
  NamedValues expected;
  double expected_loss = 0;
  with_rigs(1, config, {}, [&](Rig& rig) {
    expected_loss = read(rig.forward_backward(rig.use(batch), {0.05, {}}), rig.stream)[0];
    expected = rig.gradients();
  });
  for (const int ranks : {2, 3, 7, 40}) {  // at 40 some hold nothing
    for (const auto kind : parallel::layout_kinds()) {
      // A striped cut of packed documents is checked by the attention itself; here it must give the
      // same answer.
      SCOPED_TRACE(runtime::concat(ranks, " ranks, ", parallel::name(kind)));
      std::mutex mutex;
      NamedValues sum;
      double loss = 0;
      with_rigs(ranks, config, {.recompute = Recompute::full}, [&](Rig& rig) {
        const double mine =
            read(rig.forward_backward(rig.use(batch, kind), {0.05, {}}), rig.stream)[0];
        const NamedValues gradients = rig.gradients();
        std::lock_guard lock(mutex);
        loss += mine;
        for (const auto& [name, values] : gradients) {
          auto& total = sum.try_emplace(name, values.size()).first->second;
          for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
        }
      });
      EXPECT_NEAR(loss, expected_loss, kLossBound * expected_loss);
      expect_gradients(sum, expected, kGradientBound);
    }
  }
}

TEST_P(Tying, RanksGiveTheSameLossAndGradients) {
  const ModelConfig config = small_config(GetParam());
  expect_same_over_ranks(config, document_batch(config, {3, 1, 20, 9}, 13));
}

// ---- layers that see different masks
// ------------------------------------------------------------------------------------

TEST(Llama, SlidingLayersMatchDifferencesOfTheOracle) {
  for (const std::int64_t window : {1, 3}) {
    const ModelConfig config = sliding_config(window);
    const OracleBatch batch = document_batch(config, {5, 1, 6}, 3);
    with_rigs(1, config, {}, [&](Rig& rig) {
      const Tensor loss = rig.forward_backward(rig.use(batch), {1, {}});
      const NamedValues parameters = rig.parameters();
      const double expected = test::oracle_loss(config, parameters, batch);
      EXPECT_NEAR(read(loss, rig.stream)[0], expected, kLossBound * expected);
      expect_gradients(rig.gradients(), test::oracle_gradients(config, parameters, batch),
                       kGradientBound);
    });
  }
}

TEST(Llama, RanksGiveTheSameLossAndGradientsWithSlidingLayers) {
  const ModelConfig config = sliding_config(4);
  expect_same_over_ranks(config, document_batch(config, {3, 1, 20, 9}, 13));
}

TEST(Llama, ALayerSendsWhatItsOwnMaskNeeds) {
  // 10 rows a rank. A full layer's ranks get all rows before theirs, a sliding layer's the
  // window - 1 rows before their first.
  constexpr std::int64_t kWindow = 4;
  const ModelConfig config = sliding_config(kWindow);
  const std::int64_t row_bytes = 2 * *config.num_key_value_heads * *config.head_dim * 4;
  const OracleBatch batch = document_batch(config, {40}, 5);
  with_rigs(4, config, {}, [&](Rig& rig) {
    rig.attention.set_scheme("group_cast");
    const Batch mine = rig.use(batch, parallel::LayoutKind::contiguous);
    const Evaluation evaluation = rig.evaluate(mine);
    rig.stream.synchronize(runtime::deadline_in(60));
    const std::int64_t later = 3 - rig.rank;
    const std::int64_t full = 10 * later, sliding = later > 0 ? kWindow - 1 : 0;
    EXPECT_EQ(rig.attention.sent_bytes(), (full + 2 * sliding) * row_bytes) << rig.rank;
  });
}

TEST(Llama, DocumentsDoNotSeeEachOther) {
  // Document B lies in rows [20, 64), across every rank; the documents before it are replaced.
  const ModelConfig config = small_config();
  const OracleBatch batch = document_batch(config, {19, 1, 44}, 17);
  OracleBatch replaced = batch;
  for (std::size_t row = 0; row < 20; ++row) {
    replaced.tokens[row] = (batch.tokens[row] + 5) % *config.vocab_size;
    if (replaced.labels[row] >= 0)
      replaced.labels[row] = (batch.labels[row] + 5) % *config.vocab_size;
  }
  for (const int ranks : {1, 3, 4}) {
    for (const auto kind : {parallel::LayoutKind::contiguous, parallel::LayoutKind::zigzag,
                            parallel::LayoutKind::striped}) {
      SCOPED_TRACE(runtime::concat("P=", ranks, " ", parallel::name(kind)));
      // Per global row of B: its logits, and the gradient at its embedding's output.
      const auto run = [&](const OracleBatch& which) {
        std::vector<std::vector<std::byte>> rows(2 * 64);
        with_rigs(ranks, config, {}, [&](Rig& rig) {
          Batch mine = rig.use(which, kind);
          const parallel::Layout layout(kind, 64, 1, ranks);
          const std::int64_t n = layout.rows(rig.rank);
          const Tensor logits = rig.logits(mine, 0, n);
          const Tensor dembedding({n, config.hidden_size}, DType::float32, rig.stream);
          mine.embedding_gradient = dembedding;
          const Tensor loss = rig.forward_backward(mine, {0.1, {}});
          const auto tokens = layout.tokens_of(rig.rank);
          for (std::int64_t i = 0; i < n; ++i) {
            const auto token = static_cast<std::size_t>(tokens[static_cast<std::size_t>(i)]);
            if (token < 20) continue;
            rows[token] = read_bytes(logits.view().slice(0, i, i + 1), rig.stream);
            rows[64 + token] = read_bytes(dembedding.view().slice(0, i, i + 1), rig.stream);
          }
        });
        return rows;
      };
      EXPECT_TRUE(run(batch) == run(replaced));
    }
  }
}

}  // namespace
}  // namespace longhaul::models

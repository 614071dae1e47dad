// Several passes through a model together: the same bits as one after the other, and exchanges that
// hide behind the work of the other pass.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>

#include "models/attention_block.h"
#include "models/family.h"
#include "runtime/comm/loopback.h"
#include "tests/support/forwarding_communicator.h"
#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::Communicator;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using test::document_batch;
using test::OracleBatch;
using test::read;
using test::read_bytes;
using test::relative_error;
using test::Rig;
using test::with_rigs;

// ---- the same answer
// ------------------------------------------------------------------------------------

/// Passes whose documents and lengths differ.
std::vector<OracleBatch> passes(const ModelConfig& config, int count) {
  const std::vector<std::vector<std::int64_t>> documents{{9, 30, 1}, {2, 25, 3, 14}, {41}};
  std::vector<OracleBatch> all;
  for (int i = 0; i < count; ++i)
    all.push_back(document_batch(config, documents[static_cast<std::size_t>(i)],
                                 static_cast<unsigned>(20 + i)));
  return all;
}

struct Answer {
  std::vector<std::vector<double>> losses;     // of each pass, by rank
  std::vector<std::vector<double>> gradients;  // by rank
  bool operator==(const Answer&) const = default;
};

Answer answer(const ModelConfig& config, const ModelOptions& options, int ranks,
              parallel::LayoutKind layout, const char* scheme, int count, bool together) {
  Answer all{std::vector<std::vector<double>>(static_cast<std::size_t>(ranks)),
             std::vector<std::vector<double>>(static_cast<std::size_t>(ranks))};
  const std::vector<OracleBatch> batches = passes(config, count);
  with_rigs(ranks, config, options, [&](Rig& rig) {
    rig.attention.set_scheme(parallel::parse_scheme(scheme));
    std::vector<Batch> mine;
    for (const OracleBatch& batch : batches) mine.push_back(rig.use(batch, layout));
    std::vector<Tensor> losses;
    if (together) {
      losses = rig.model.forward_backward(rig.resources, mine, {0.01, {}});
    } else {
      for (const Batch& batch : mine) losses.push_back(rig.forward_backward(batch, {0.01, {}}));
    }
    const auto rank = static_cast<std::size_t>(rig.rank);
    for (const Tensor& loss : losses) all.losses[rank].push_back(read(loss, rig.stream)[0]);
    all.gradients[rank] = read(rig.store.gradients(), rig.stream);
  });
  return all;
}

TEST(Interleave, IsBitForBitOneAfterTheOther) {
  struct Case {
    ModelConfig config;
    int ranks, passes;
    parallel::LayoutKind layout;
    const char* scheme;
  };
  using enum parallel::LayoutKind;
  const Case cases[] = {
      {test::small_config(), 1, 2, zigzag, "ring"},
      {test::small_config(false, DType::bfloat16), 3, 2, balanced, "burst"},
      {test::sliding_config(4), 3, 2, document_zigzag, "group_cast"},
      {test::sliding_config(4), 4, 3, striped, "usp"},
      {test::sliding_config(1), 7, 2, contiguous, "balanced_ring"},
      {test::sliding_config(5), 5, 3, zigzag, "all_gather"},
  };
  for (const Case& c : cases) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      SCOPED_TRACE(runtime::concat(c.scheme, " over ", c.ranks, " ranks, recompute ",
                                   static_cast<int>(recompute)));
      const ModelOptions options{.recompute = recompute, .head_chunk_rows = 5};
      const auto run = [&](bool together) {
        return answer(c.config, options, c.ranks, c.layout, c.scheme, c.passes, together);
      };
      EXPECT_TRUE(run(true) == run(false));
    }
  }
}

TEST(Interleave, ATiedEmbeddingSumsInAnotherOrder) {
  const ModelConfig config = test::small_config(true);
  const auto run = [&](bool together) {
    return answer(config, {}, 3, parallel::LayoutKind::zigzag, "ring", 2, together);
  };
  const Answer together = run(true), apart = run(false);
  EXPECT_EQ(together.losses, apart.losses);
  for (std::size_t rank = 0; rank < 3; ++rank)
    EXPECT_LE(relative_error(together.gradients[rank], apart.gradients[rank]), 1e-6);
}

TEST(Interleave, GroupsCompleteOnceAfterTheLastPass) {
  const ModelConfig config = test::small_config();
  with_rigs(1, config, {}, [&](Rig& rig) {
    std::vector<Batch> mine;
    for (const OracleBatch& batch : passes(config, 2)) mine.push_back(rig.use(batch));
    std::vector<parallel::ElementRange> ranges;
    std::vector<Tensor> seen;
    const auto on_gradients = [&](parallel::ElementRange range) {
      ranges.push_back(range);
      // What the stream holds at this point must be final.
      seen.emplace_back(std::initializer_list<std::int64_t>{range.elements()}, DType::float32,
                        rig.stream);
      copy(rig.store.gradients().slice(0, range.begin, range.end), seen.back(), rig.stream);
    };
    const auto losses = rig.model.forward_backward(rig.resources, mine, {1, on_gradients});
    ASSERT_EQ(losses.size(), 2u);
    ASSERT_EQ(ranges.size(), 4u);  // head, two layers, embedding
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(ranges[i], rig.store.table().group_range(3 - static_cast<int>(i)));
      EXPECT_EQ(
          read_bytes(seen[i], rig.stream),
          read_bytes(rig.store.gradients().slice(0, ranges[i].begin, ranges[i].end), rig.stream));
    }
  });
}

// ---- memory
// ------------------------------------------------------------------------------------

/// Sizes whose tensors are whole units of the pool.
ModelConfig round_config(std::int64_t layers) {
  ModelConfig config = test::small_config();
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.head_dim = 16;
  config.num_hidden_layers = layers;
  return config;
}

std::int64_t peak_bytes(const ModelConfig& config, const ModelOptions& options, int passes) {
  std::int64_t peak = 0;
  with_rigs(1, config, options, [&](Rig& rig) {
    std::vector<Batch> mine;
    for (int i = 0; i < passes; ++i) mine.push_back(rig.use(document_batch(config, {256}, 5)));
    const std::int64_t before = rig.stream.memory().current_bytes;
    rig.stream.reset_peak();
    const auto losses = rig.model.forward_backward(rig.resources, mine, {1, {}});
    peak = rig.stream.memory().peak_bytes - before;
  });
  return peak;
}
std::int64_t peak_bytes(std::int64_t layers, const ModelOptions& options, int passes) {
  return peak_bytes(round_config(layers), options, passes);
}

TEST(Interleave, PassBytesAreWhatIsHeld) {
  const ModelOptions options{.head_chunk_rows = 8};
  ModelConfig wide_mlp = round_config(2), wide_attention = round_config(2);
  wide_mlp.intermediate_size = 1024;
  wide_attention.num_attention_heads = wide_attention.num_key_value_heads = 16;
  for (const ModelConfig& config : {wide_mlp, wide_attention}) {
    // Attention of one rank needs no arena. What a batch brings is there before.
    const std::vector<parallel::CallBytes> calls(1);
    const auto predicted = static_cast<double>(model_of(config, options).pass_bytes(256, calls, 1) -
                                               256 * 4 * size_bytes(DType::int32));
    const auto measured = static_cast<double>(peak_bytes(config, options, 1));
    const auto panels = static_cast<double>(test::product_bytes(model_of(config, options), 256));
    EXPECT_LE(predicted, 1.02 * measured) << *config.intermediate_size;
    EXPECT_GE(predicted + panels, 0.98 * measured) << *config.intermediate_size;
  }
}

TEST(Interleave, ActivationBytesAreWhatIsHeld) {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    const ModelOptions options{.recompute = recompute, .head_chunk_rows = 8};
    const auto predicted = [&](std::int64_t layers) {
      return model_of(round_config(layers), options).activation_bytes(256);
    };
    // A layer more: exactly what it keeps.
    EXPECT_EQ(peak_bytes(5, options, 1) - peak_bytes(4, options, 1), predicted(5) - predicted(4));
    EXPECT_EQ(peak_bytes(5, options, 2) - peak_bytes(4, options, 2),
              2 * (predicted(5) - predicted(4)));
    // A pass more: at the peak backward may have released part of the last layer; besides its
    // activations a pass holds little.
    const std::int64_t second = peak_bytes(5, options, 2) - peak_bytes(5, options, 1);
    EXPECT_GE(second, predicted(4));
    EXPECT_LE(second, predicted(5) + 256 * 64 * 4 * 8);
  }
}

// ---- exchanges hide
// ------------------------------------------------------------------------------------

/// Dense work: something that the compute stream does, forward and backward.
class Work final : public Block {
 public:
  using Task = std::function<void(const Batch&)>;
  Work(int group, Task task) : Block(group), task_(std::move(task)) {}

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override {
    return std::make_unique<Pass>(*this, context);
  }
  double flops(std::int64_t, std::span<const std::int64_t>) const override { return 0; }
  std::int64_t kept_bytes(std::int64_t) const override { return 0; }
  PassingBytes passing_bytes(std::int64_t, const parallel::CallBytes&) const override { return {}; }

 private:
  class Pass final : public BlockPass {
   public:
    Pass(const Work& work, const PassContext& context) : work_(work), context_(context) {}
    Stages activate(Tensor input) override {
      input_ = std::move(input);
      run();
      co_return;
    }
    Tensor output() const override {
      Tensor out(input_.view().sizes(), input_.dtype(), context_.resources.compute);
      copy(input_, out, context_.resources.compute);
      return out;
    }
    Stages backward(runtime::TensorView) override {
      run();
      co_return;
    }

   private:
    void run() const {
      context_.resources.compute.host_task(
          [task = work_.task_, batch = &context_.batch] { task(*batch); });
    }
    const Work& work_;
    const PassContext& context_;
  };
  const Task task_;
};

constexpr std::int64_t kHidden = 8, kVocabulary = 17;

/// Layers of attention and then work.
Model working_model(int layers, const Work::Task& task) {
  using enum parallel::Initialisation;
  ModelParts parts;
  parts.hidden = kHidden;
  parts.ropes = {make_rope({4, 1e4})};
  parts.masks = {{std::nullopt, layers}};
  parts.embedding = "embedding";
  parts.table.add({"embedding", {kVocabulary, kHidden}, normal, 0.02, false, -1, 0, {}});
  for (int layer = 1; layer <= layers; ++layer) {
    parts.blocks.push_back(std::make_unique<AttentionBlock>(
        AttentionShape{{.hidden = kHidden}, 2, 2, 4}, 0,
        BlockNames{std::to_string(layer) + ".norm", std::to_string(layer) + "."}, layer, 0.02, 0.02,
        parts.table));
    parts.blocks.push_back(std::make_unique<Work>(layer, task));
  }
  parts.table.add({"norm", {kHidden}, ones, 0, false, -1, layers + 1, {}});
  parts.table.add({"head", {kVocabulary, kHidden}, normal, 0.02, true, -1, layers + 1, {}});
  parts.head = {kHidden, kVocabulary, 1e-5, DType::float32, "norm", "head"};
  return {std::move(parts), {}};
}

/// Before each exchange of attention, numbered from 0, the channel runs `hold`.
class Held final : public test::ForwardingCommunicator {
 public:
  using Hold = std::function<void(int exchange)>;
  Held(std::unique_ptr<Communicator> inner, Hold hold)
      : ForwardingCommunicator(std::move(inner)), hold_(std::move(hold)) {}
  void exchange(std::vector<runtime::SendMessage> sends,
                std::vector<runtime::ReceiveMessage> receives, const std::string& what,
                const Stream& stream) override {
    stream.host_task([hold = hold_, number = exchanges_++] { hold(number); });
    ForwardingCommunicator::exchange(std::move(sends), std::move(receives), what, stream);
  }
  std::unique_ptr<Communicator> split(int color, int key, const std::string& name) override {
    return std::make_unique<Held>(ForwardingCommunicator::split(color, key, name), hold_);
  }

 private:
  const Hold hold_;
  int exchanges_ = 0;
};

/// Two passes over 2 ranks, together or one after the other. Returns the seconds that rank 0 took.
double run_two_passes(const char* scheme, int layers, bool together,
                      const std::function<void(int rank, int pass)>& task,
                      const std::function<void(int rank, int exchange)>& hold) {
  double seconds = 0;
  runtime::run_loopback(2, {}, [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const Stream compute = Stream::cpu("compute");
    const Batch* second = nullptr;
    const Model model =
        working_model(layers, [&](const Batch& batch) { task(rank, &batch == second ? 1 : 0); });
    ParameterStore store(model.table(), DType::float32, compute);
    store.initialise(1, compute);
    parallel::Attention attention(
        {.scheme = parallel::parse_scheme(scheme)},
        std::make_unique<Held>(std::move(world), [&, rank](int n) { hold(rank, n); }), compute);
    const Resources resources{store, attention, compute};
    const parallel::Layout layout(parallel::LayoutKind::contiguous, 8, 1, 2);
    const Tensor rows({4}, DType::int32, compute);
    fill(rows, 1, compute);
    const auto masks = attention.batch(attention::Mask::full(8), layout);
    const std::vector<Batch> batches(2, Batch{rows, rows, rows, {masks}});
    second = &batches[1];
    compute.synchronize(runtime::deadline_in(60));
    const auto begin = runtime::Clock::now();
    std::vector<Tensor> losses;
    for (std::size_t i = 0; i < 2; i += together ? 2 : 1) {
      for (Tensor& loss : model.forward_backward(
               resources, std::span(batches).subspan(i, together ? 2 : 1), {1, {}}))
        losses.push_back(std::move(loss));
    }
    compute.synchronize(runtime::deadline_in(60));
    if (rank == 0) seconds = std::chrono::duration<double>(runtime::Clock::now() - begin).count();
  });
  return seconds;
}

TEST(Interleave, AnExchangeRunsBesideTheDenseWorkOfTheOtherPass) {
  // The first pass's exchange of layer 2 may begin only once the second pass has done its work of
  // layer 1. Whoever ran the passes one after the other, or waited for that exchange before the
  // second pass's work was enqueued, would wait here for ever.
  std::array<std::atomic<int>, 2> done{};
  std::atomic<int> held = 0, in_vain = 0;
  const auto task = [&](int rank, int pass) {
    if (pass == 1) ++done[static_cast<std::size_t>(rank)];
  };
  const auto hold = [&](int rank, int exchange) {
    const auto r = static_cast<std::size_t>(rank);
    if (exchange != 2) return;  // after both passes' of layer 1
    const auto deadline = runtime::deadline_in(20);
    while (done[r] == 0 && runtime::Clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++held;
    if (done[r] == 0) ++in_vain;
  };
  run_two_passes("ring", 3, true, task, hold);
  EXPECT_GE(held, 2) << "on both ranks";
  EXPECT_EQ(in_vain, 0);
}

TEST(Interleave, WithSlowLinksAStepIsShorter) {
  // Everything that takes time sleeps: other load on the machine hardly matters. An exchange takes
  // 15 ms, the dense work of a layer and pass too. One after the other nothing hides: a layer and
  // pass take 30 ms forward (one exchange), 45 backward (two). Together the first pass's keys
  // travel beside the second's dense work, and the second's gradients beside the first's: a layer
  // of both takes 45 ms instead of 60, and 60 instead of 90.
  const auto sleep = [](int milliseconds) {
    return [milliseconds](int, int) {
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    };
  };
  const auto best = [&](bool together) {
    double seconds = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 2; ++repeat)
      seconds = std::min(seconds, run_two_passes("group_cast", 8, together, sleep(15), sleep(15)));
    return seconds;
  };
  const double apart = best(false), together = best(true);
  EXPECT_GE(apart, 8 * 2 * 0.075);
  EXPECT_LE(together, 0.88 * apart);
  std::printf("apart %.3f s, together %.3f s\n", apart, together);
}

}  // namespace
}  // namespace longhaul::models

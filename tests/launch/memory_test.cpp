#include "launch/memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "launch/attention_axis.h"
#include "runtime/build_info.h"
#include "runtime/cgroup.h"
#include "runtime/device.h"
#include "runtime/purpose.h"
#include "runtime/size_text.h"
#include "tests/support/gpu.h"
#include "tests/support/training_job.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::ProcessResult;

constexpr std::int64_t kVocabulary = 97;

test::RawSequence sequence(std::int64_t seq_len, std::int64_t number) {
  return test::random_sequence(kVocabulary, seq_len, number);
}

struct Case {
  std::string name;
  std::function<void(TrainConfig&)> change;
};

/// The program in so much address space: were a run that must be refused not refused, it would not
/// get the host's memory.
ProcessResult run_within(std::int64_t kib, const test::TrainingJob& job, int ranks,
                         const std::vector<std::string>& sets) {
  std::vector<std::string> command{"sh", "-c", fmt::format("ulimit -v {} && exec \"$@\"", kib),
                                   "sh"};
  const auto train = job.train("run", sets);
  if (ranks > 1) {
    const auto mpirun = test::mpirun_command(ranks, train);
    command.insert(command.end(), mpirun.begin(), mpirun.end());
  } else {
    command.push_back(test::longhaul_program());
    command.insert(command.end(), train.begin(), train.end());
  }
  return test::run_process(command, {.environment = {{"OMP_NUM_THREADS", "1"}}});
}
#ifdef __SANITIZE_ADDRESS__
constexpr const char* kNoLimit = "a sanitizer needs more address space than this test leaves";
#endif

/// As many sequences as two steps take, again and again, so that an estimate and a run see the same
/// ones.
test::RawSequences::Generator repeated(const TrainConfig& config,
                                       test::RawSequences::Generator generator) {
  const std::int64_t count = 2 * config.training.tokens_per_step / config.training.seq_len;
  return [=](std::int64_t number) { return generator(number % count); };
}

/// Runs two steps and holds the estimate of the rank that needs most to the measured peak.
void expect_estimate(TrainConfig config, std::int64_t vocabulary, double tolerance,
                     const test::RawSequences::Generator& sequences) {
  config.training.steps = 2;
  const test::RawSequences::Generator generator = repeated(config, sequences);
  const auto results = test::run_training(config, vocabulary, generator, {.steps = 2});
  const auto measured =
      static_cast<double>(std::max(results[0].memory_bytes, results[1].memory_bytes));
  const test::RawSequences source(generator);
  const MemoryQuestion question{config, vocabulary, source, 1};
  const int ranks = attention_axis(config).world_size();
  double estimated = 0;
  for (int rank = 0; rank < ranks; ++rank)
    estimated = std::max(estimated, static_cast<double>(estimate_memory(question, rank).total()));
  EXPECT_NEAR(estimated, measured, tolerance * measured)
      << estimate_text(estimate_memory(question, 0)) << "\nratio " << estimated / measured;
}

void expect_estimate(const TrainConfig& config, std::int64_t vocabulary, double tolerance) {
  const std::int64_t seq_len = config.training.seq_len;
  expect_estimate(config, vocabulary, tolerance, [=](std::int64_t number) {
    return test::random_sequence(vocabulary, seq_len, number);
  });
}

void expect_estimate(const Case& c) {
  SCOPED_TRACE(c.name);
  TrainConfig config = test::small_training(256);
  config.model.hidden_size = 48;
  config.model.intermediate_size = 112;
  config.model.head_dim = 12;
  c.change(config);
  expect_estimate(config, kVocabulary, 0.1);
}

TEST(Memory, TheEstimateIsWithinATenthOfWhatIsMeasured) {
  const auto ranks = [](TrainConfig& config, std::int64_t data, std::int64_t context) {
    config.parallelism.data_parallel_replicate_degree = data;
    config.parallelism.context_parallel_degree = context;
  };
  const auto scheme = [](TrainConfig& config, const char* name) {
    config.parallelism.context_parallel_scheme = name;
  };
  const auto serve = [&](TrainConfig& config, std::int64_t data, std::int64_t context,
                         std::int64_t servers) {
    ranks(config, data, context), scheme(config, "disaggregated");
    config.parallelism.context_parallel_layout = "packed";
    if (servers == 0) return;
    config.attention_servers.mode = "dedicated";
    config.attention_servers.count = servers;
  };
  for (const Case& c : std::vector<Case>{
           {"one rank", [](TrainConfig&) {}},
           {"long",
            [](TrainConfig& t) { t.training.seq_len = 1021, t.training.tokens_per_step = 4084; }},
           {"bfloat16", [](TrainConfig& t) { t.training.dtype = runtime::DType::bfloat16; }},
           {"recomputed",
            [](TrainConfig& t) {
              t.activation_checkpoint.mode = "full";
              t.model.num_hidden_layers = 7;
            }},
           {"seven layers", [](TrainConfig& t) { t.model.num_hidden_layers = 7; }},
           {"micro-batch", [](TrainConfig& t) { t.training.micro_batch_size = 4; }},
           {"interleaved", [](TrainConfig& t) { t.training.interleave = 2; }},
           {"wide MLP", [](TrainConfig& t) { t.model.intermediate_size = 1024; }},
           {"wide heads", [](TrainConfig& t) { t.model.head_dim = 64; }},
           {"three ranks, ring", [&](TrainConfig& t) { ranks(t, 1, 3); }},
           {"seven ranks, burst", [&](TrainConfig& t) { ranks(t, 1, 7), scheme(t, "burst"); }},
           {"two ranks, ulysses", [&](TrainConfig& t) { ranks(t, 1, 2), scheme(t, "ulysses"); }},
           {"five ranks, all_gather",
            [&](TrainConfig& t) { ranks(t, 1, 5), scheme(t, "all_gather"); }},
           {"group_cast",
            [&](TrainConfig& t) {
              ranks(t, 1, 3), scheme(t, "group_cast");
              t.data.mask = "causal";
            }},
           {"interleaved ring of three",
            [&](TrainConfig& t) {
              ranks(t, 1, 3);
              t.training.interleave = 2;
            }},
           {"attention served in place, 2 x 2", [&](TrainConfig& t) { serve(t, 2, 2, 0); }},
           {"attention served by two more, interleaved",
            [&](TrainConfig& t) {
              serve(t, 2, 1, 2);
              t.training.interleave = 2;
            }},
           {"attention served by one more that keeps what it has",
            [&](TrainConfig& t) {
              serve(t, 1, 3, 1);
              scheme(t, "disaggregated(resend=false)");
            }},
           {"sharded, 2 x 2",
            [&](TrainConfig& t) {
              ranks(t, 2, 2);
              t.parallelism.shard = "optimizer";
            }},
           {"sharded bfloat16 of a larger model", [&](TrainConfig& t) {
              ranks(t, 1, 3);
              t.parallelism.shard = "optimizer";
              t.training.dtype = runtime::DType::bfloat16;
              t.model.intermediate_size = 700;
            }}}) {
    expect_estimate(c);
  }
}

TEST(Memory, DocumentsOfMixedLengthAreEstimatedByTheMostDemandingSequences) {
  // One sequence of eight is one document, the others are of documents of seven tokens.
  static constexpr std::int64_t kTokens = 1024;
  const auto generator = [](std::int64_t long_one) {
    return [=](std::int64_t number) {
      test::RawSequence raw = sequence(kTokens, number);
      raw.documents = {0};
      while (number != long_one && raw.documents.back() + 7 < kTokens)
        raw.documents.push_back(raw.documents.back() + 7);
      raw.documents.push_back(kTokens);
      for (std::int64_t t = 0, d = 0; t < kTokens; ++t) {
        if (t == raw.documents[static_cast<std::size_t>(d) + 1]) ++d;
        raw.positions[static_cast<std::size_t>(t)] =
            static_cast<std::int32_t>(t - raw.documents[static_cast<std::size_t>(d)]);
      }
      return raw;
    };
  };
  for (const char* scheme : {"group_cast", "ring"}) {
    for (const std::int64_t micro_batch : {1, 2}) {
      TrainConfig config = test::small_training(kTokens);
      config.model.num_hidden_layers = 1;
      config.model.intermediate_size = 16;
      config.activation_checkpoint.mode = "full";
      config.training.micro_batch_size = micro_batch;
      config.parallelism.data_parallel_replicate_degree = 1;
      config.parallelism.context_parallel_degree = 4;
      config.parallelism.context_parallel_scheme = scheme;
      for (const std::int64_t long_one : {0, 5, 7}) {
        SCOPED_TRACE(
            fmt::format("{}, {} a pass, the long one is {}", scheme, micro_batch, long_one));
        expect_estimate(config, kVocabulary, 0.1, generator(long_one));
      }
    }
  }
}

/// Counts what is asked of it.
class CountedSequences final : public runtime::SequenceSource {
 public:
  runtime::PackedDocuments documents(std::int64_t number) const override {
    ++asked_;
    most_ = std::max(most_, number);
    return {{0, 100 + number, 256}, 0};
  }
  void read(std::int64_t, std::span<const runtime::Run>, runtime::Rows&) const override {
    ADD_FAILURE() << "an estimate reads tokens";
  }
  std::int64_t asked() const { return asked_; }
  std::int64_t most() const { return most_; }

 private:
  mutable std::int64_t asked_ = 0, most_ = -1;
};

TEST(Memory, AnEstimateLooksAtSoManySequencesAndReadsNoToken) {
  for (const std::int64_t micro_batch : {1, 7, 100}) {
    TrainConfig config = test::small_training(256);
    config.training.micro_batch_size = micro_batch;
    const CountedSequences source;
    const MemoryQuestion question{config, kVocabulary, source, 1};
    EXPECT_GT(estimate_memory(question, 0).activations, 0);
    EXPECT_LT(source.most(), std::max<std::int64_t>(64, micro_batch));
    EXPECT_GE(source.most(), std::min<std::int64_t>(64, 9 * micro_batch) - 1);
    EXPECT_LE(source.asked(), std::max<std::int64_t>(64, micro_batch) + 8 * micro_batch);
  }
}

TEST(Memory, SizesAreReadInTheUnitThatShowsThem) {
  constexpr std::int64_t kMib = 1 << 20, kGib = 1 << 30;
  EXPECT_EQ(runtime::size_text(0), "0.0 KiB");
  EXPECT_EQ(runtime::size_text(12 << 10), "12.0 KiB");
  EXPECT_EQ(runtime::size_text(kMib / 2), "0.5 MiB");
  EXPECT_EQ(runtime::size_text(102 * kMib), "102.0 MiB");
  EXPECT_EQ(runtime::size_text(103 * kMib), "0.10 GiB");
  EXPECT_EQ(runtime::size_text(kGib), "1.0 GiB");
  EXPECT_EQ(runtime::size_text(613 * kGib / 10), "61.3 GiB");
}

TEST(Memory, ModelsThatFitNowhereAreRefusedBeforeAnythingIsAllocated) {
  const test::TrainingJob job;
  const std::vector<std::string> sets{"model.hidden_size=16384", "model.intermediate_size=65536",
                                      "model.num_hidden_layers=64"};
  for (const int ranks : {1, 3}) {
    const ProcessResult result = job.run(ranks, "run", sets);
    EXPECT_EQ(result.exit_code, 71) << result.err;
    for (const char* part : {"parameters, gradients and optimizer state alone take ", " GiB",
                             "neither a shorter sequence nor recomputation helps", "which has "}) {
      EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.err;
    }
    EXPECT_EQ(result.err.find("seq_len"), std::string::npos) << result.err;
    if (ranks > 1) {
      EXPECT_NE(result.err.find("in 3 ranks"), std::string::npos) << result.err;
      EXPECT_NE(result.err.find("parallelism.shard"), std::string::npos) << result.err;
    }
  }
  std::vector<std::string> validate{"validate", job.config(), "--ranks", "1"};
  for (const std::string& set : sets) validate.insert(validate.end(), {"--set", set});
  const ProcessResult result = test::run_longhaul(validate);
  EXPECT_EQ(result.exit_code, 71) << result.out;
  EXPECT_NE(result.err.find("on this host"), std::string::npos) << result.err;
}

/// A configuration whose states fit on this host once, and `ranks` times not.
TEST(Memory, TheRanksOfAHostCountTogether) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << kNoLimit;
#endif
  const std::int64_t memory = runtime::node_memory_bytes();
  const test::TrainingJob job;
  // 16 bytes a parameter, three matrices of 1024 x 16384 in a layer: about 0.4 of the memory.
  const std::int64_t layers =
      std::max<std::int64_t>(1, memory * 4 / 10 / (16 * 3 * 1024 * 16384 + 16 * 4 * 1024 * 1024));
  const ProcessResult result =
      run_within(4 << 20, job, 3,
                 {"model.hidden_size=1024", "model.intermediate_size=16384",
                  "model.num_hidden_layers=" + std::to_string(layers)});
  EXPECT_EQ(result.exit_code, 71) << result.err;
  EXPECT_NE(result.err.find("in 3 ranks"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("at most 2 of its ranks on a host"), std::string::npos) << result.err;
}

TEST(Memory, AnEstimateBeyondTheHostWarnsWithWhatEachRemedySaves) {
  const std::int64_t memory = runtime::node_memory_bytes();
  // A sequence whose activations do not fit: gate and up alone, 8 bytes a token and inner element.
  constexpr std::int64_t kTokens = 4096;
  const std::int64_t inner = 1 << 16, layers = memory / (kTokens * inner * 8) + 2;
  TrainConfig config = test::small_training(kTokens);
  config.model.hidden_size = 4;
  config.model.num_attention_heads = config.model.num_key_value_heads = 1;
  config.model.head_dim = 4;
  config.model.intermediate_size = inner;
  config.model.num_hidden_layers = layers;
  config.comm.backend = "loopback";
  config.training.interleave = 2;
  const test::RawSequences source([](std::int64_t number) { return sequence(kTokens, number); });
  const MemoryQuestion question{config, kVocabulary, source, 1};
  const std::string text = judge_memory(question);
  EXPECT_NE(text.find("\nwarning  a rank may need "), std::string::npos) << text;
  const std::int64_t now = estimate_memory(question, 0).total();
  const auto saves = [&](const std::string& what, const auto& change) {
    TrainConfig other = config;
    change(other);
    const std::int64_t then = estimate_memory({other, kVocabulary, source, 1}, 0).total();
    const std::string line =
        fmt::format("{} saves {} a rank", what, runtime::size_text(now - then));
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  };
  saves("(recompute activations)", [](TrainConfig& t) { t.activation_checkpoint.mode = "full"; });
  saves("2 ranks of the context axis",
        [](TrainConfig& t) { t.parallelism.context_parallel_degree = 2; });
  saves("training.interleave = 1", [](TrainConfig& t) { t.training.interleave = 1; });
  EXPECT_EQ(text.find("micro_batch_size"), std::string::npos) << text;  // it is 1
}

/// 100 million weights over 32,000 tokens.
TrainConfig on_gpu(const std::function<void(TrainConfig&)>& change) {
  TrainConfig config = test::small_training(8192);
  config.model.hidden_size = 1024;
  config.model.intermediate_size = 2816;
  config.model.num_hidden_layers = 4;
  config.model.num_attention_heads = 8;
  config.model.num_key_value_heads = 4;
  config.model.head_dim = 128;
  config.training.tokens_per_step = 16384;
  config.training.dtype = runtime::DType::bfloat16;
  config.comm.backend = "loopback";
  config.device.kind = "cuda";
  change(config);
  return config;
}

TEST(Memory, OnAGpuLogitsTakeTwoGibAndMessagesAreTheHosts) {
  constexpr std::int64_t kMany = 128'256;
  const test::RawSequences source([](std::int64_t number) { return sequence(8192, number); });
  const TrainConfig gpu = on_gpu([](TrainConfig& t) {
    t.parallelism.context_parallel_degree = 2;
    t.parallelism.data_parallel_replicate_degree = 1;
  });
  TrainConfig cpu = gpu;
  cpu.device.kind = "cpu";
  const MemoryEstimate on_cpu = estimate_memory({cpu, kMany, source, 1}, 0),
                       estimate = estimate_memory({gpu, kMany, source, 1}, 0);
  EXPECT_EQ(estimate.states(), on_cpu.states());
  EXPECT_EQ(estimate.activations, on_cpu.activations);
  EXPECT_LT(estimate.messages, on_cpu.messages);
  // Rows of 128,256 logits in float32: 512 of them on the CPU, within 2 GiB on a GPU.
  const std::int64_t row = kMany * 4;
  const double more = static_cast<double>(estimate.passing - on_cpu.passing);
  EXPECT_NEAR(more, static_cast<double>((std::int64_t{2} << 30) - 512 * row), 0.15 * (1 << 30));
}

TEST(MemoryCuda, TheEstimateIsWithinATwentiethOfWhatIsMeasured) {
  LONGHAUL_NEEDS_GPU();
  for (const Case& c : std::vector<Case>{
           {"bfloat16", [](TrainConfig&) {}},
           {"recomputed", [](TrainConfig& t) { t.activation_checkpoint.mode = "full"; }},
           {"recomputed but attention",
            [](TrainConfig& t) { t.activation_checkpoint.mode = "selective"; }},
           {"float32", [](TrainConfig& t) { t.training.dtype = runtime::DType::float32; }},
           {"two ranks", [](TrainConfig& t) { t.parallelism.context_parallel_degree = 2; }}}) {
    SCOPED_TRACE(c.name);
    expect_estimate(on_gpu(c.change), 32'000, 0.05);
  }
}

/// The line that `validate` says of the memory of a configuration.
std::string judged(const std::string& config, const std::vector<std::string>& sets) {
  std::vector<std::string> validate{"validate", config};
  for (const std::string& set : sets) validate.insert(validate.end(), {"--set", set});
  const auto result = test::run_longhaul(validate);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const auto at = result.out.find("# memory ");
  EXPECT_NE(at, std::string::npos) << result.out;
  return at == std::string::npos ? "" : result.out.substr(at, result.out.find('\n', at) - at);
}

/// A machine without a GPU judges what is to run on one, as far as it can be known there.
TEST(Memory, AConfigurationForGpusIsJudgedAnywhere) {
  const test::TrainingJob job;
  const bool gpu = runtime::cuda_device_count() > 0;
  const std::string here = gpu ? "this host's GPU's" : "there is no GPU here to hold it against",
                    kernels = "which only a build with CUDA knows";
  const auto has = [](const std::string& line, const std::string& part) {
    return line.find(part) != std::string::npos;
  };
  const std::string some =
      judged(job.config(), {"device.kind=cuda", "comm.backend=nccl", "training.dtype=bfloat16",
                            "parallelism.context_parallel_degree=2"});
  EXPECT_TRUE(has(some, "parameters") && has(some, here)) << some;
  EXPECT_EQ(has(some, kernels), !runtime::build_info().cuda) << some;
  // The example is 1.2 billion weights, which take 18 bytes each with their states.
  const std::string example =
      judged(std::string(LONGHAUL_SOURCE_DIR) + "/launch/configs/llama-1b-gpu.toml",
             {"data.corpus=" + job.corpus(), "training.seq_len=96", "training.tokens_per_step=96"});
  EXPECT_TRUE(has(example, "optimizer 9.2 GiB") && has(example, here)) << example;
}

TEST(Memory, AnErrorNamesWhatAskedForIt) {
  const runtime::Stream stream = runtime::Stream::cpu("here");
  const runtime::Tensor held({1 << 20}, runtime::DType::float32, stream);
  const auto message = [&] {
    const runtime::Purpose outer("backward of layer", 3, "recompute more");
    const runtime::Purpose inner("the logits");
    try {
      const runtime::Tensor tensor({std::int64_t{1} << 40, 4096}, runtime::DType::float32, stream);
    } catch (const runtime::Error& error) {
      EXPECT_EQ(error.code(), runtime::ExitCode::memory);
      return std::string(error.what());
    }
    return std::string("nothing was refused");
  }();
  for (const char* part : {"16777216.0 GiB (18014398509481984 bytes)",
                           "by the logits, backward of layer 3", "4.0 MiB in use", "stream 'here'",
                           "recompute more", "a float32 tensor of [1099511627776, 4096]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }
  EXPECT_EQ(runtime::purpose_text(), "");
}

TEST(Memory, ARunThatDoesNotGetItsMemorySaysWhatItWasFor) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << kNoLimit;
#endif
  const test::TrainingJob job;
  // 0.6 GiB of parameters in 2 GiB of address space: gradients or moments do not get theirs.
  const ProcessResult result =
      run_within(2 << 20, job, 1, {"model.hidden_size=1024", "model.intermediate_size=50000"});
  EXPECT_EQ(result.exit_code, 71) << result.err << result.out;
  EXPECT_NE(result.err.find("asked for by the "), std::string::npos) << result.err;
}

}  // namespace
}  // namespace longhaul::launch

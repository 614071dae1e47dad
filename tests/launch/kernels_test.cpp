#include "launch/kernels.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/training_job.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kVocabulary = 97;

TrainConfig job(std::int64_t seq_len) {
  TrainConfig config = test::small_training(seq_len);
  config.model.head_dim = 64;
  config.training.dtype = runtime::DType::bfloat16;
  config.parallelism.context_parallel_degree = 8;
  config.parallelism.context_parallel_layout = "zigzag";
  config.data.mask = "causal";
  return config;
}

std::string text_of(const TrainConfig& config, attention::Kernels kernels) {
  const std::int64_t seq_len = config.training.seq_len;
  const test::RawSequences source(
      [=](std::int64_t number) { return test::random_sequence(kVocabulary, seq_len, number); });
  return kernels_text({config, kVocabulary, source}, kernels, false);
}

TEST(Kernels, AreToldBeforeARun) {
  const TrainConfig config = job(65536);
  const std::string text = text_of(config, attention::Kernels::automatic);
  EXPECT_EQ(text,
            "ring: forward cuDNN 100.0% of the pairs (dense 100.0%, ragged 0.0%); backward cuDNN "
            "100.0% of the pairs (dense 100.0%, ragged 0.0%)");
}

TEST(Kernels, SayWhyTheyAreOurOwn) {
  TrainConfig config = job(4096);
  config.training.dtype = runtime::DType::float32;
  EXPECT_EQ(text_of(config, attention::Kernels::automatic),
            "ring: forward exact kernels 100.0%: the activation dtype is float32, cuDNN's kernels "
            "take bfloat16; backward exact kernels 100.0%: the activation dtype is float32, "
            "cuDNN's kernels take bfloat16");
  test::expect_error(runtime::ExitCode::config, "attention by cuDNN is demanded, but",
                     [&] { text_of(config, attention::Kernels::cudnn); });
}

}  // namespace
}  // namespace longhaul::launch

// The configuration offers exactly the schemes, layouts and masks that exist.
#include <gtest/gtest.h>

#include <optional>

#include "attention/named_masks.h"
#include "launch/batches.h"
#include "launch/config.h"
#include "parallel/layout.h"
#include "parallel/schemes/scheme.h"
#include "runtime/error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

TEST(Schemes, TheConfigurationExplainsThoseThatExist) {
  const runtime::ConfigKey* key = config_schema().find("parallelism", "context_parallel_scheme");
  ASSERT_NE(key, nullptr);
  for (const std::string& name : parallel::scheme_names()) {
    EXPECT_NE(
        key->explanation.find("`" + parallel::signature(parallel::scheme_from_name(name)) + "`"),
        std::string::npos);
  }
}

TEST(Schemes, TheConfigurationOffersLayoutsThatExist) {
  const runtime::ConfigKey* key = config_schema().find("parallelism", "context_parallel_layout");
  ASSERT_NE(key, nullptr);
  std::vector<std::string> layouts;
  for (const parallel::LayoutKind kind : parallel::layout_kinds())
    layouts.push_back(parallel::name(kind));
  EXPECT_EQ(key->choices, layouts);
}

TEST(Schemes, TheConfigurationOffersMasksThatExist) {
  const runtime::ConfigKey* key = config_schema().find("data", "mask");
  ASSERT_NE(key, nullptr);
  std::vector<std::string> trainable, others, refused;
  for (const std::string& name : attention::mask_names())
    (attention::mask_rule(name).trainable() ? trainable : others).push_back(name);
  EXPECT_EQ(key->choices, trainable);
  for (const auto& [name, reason] : key->not_choices) {
    if (!reason.starts_with("here it is called")) refused.push_back(name);  // a peer's word
  }
  EXPECT_EQ(refused, others);
}

/// Every mask with every set of numbers: the configuration accepts just what the mask does.
TEST(Schemes, TheConfigurationAsksForTheNumbersThatMasksTake) {
  constexpr std::int64_t kSeqLen = 12;
  const test::TempDirectory folder;
  test::write_text(folder.file("corpus.h5"), "not read here");
  test::write_text(folder.file("run.toml"),
                   "[job]\noutput_dir = \"" + folder.file("run") +
                       "\"\n[model]\nhidden_size = 8\nintermediate_size = 8\n"
                       "num_hidden_layers = 1\nnum_attention_heads = 2\n[data]\ncorpus = \"" +
                       folder.file("corpus.h5") +
                       "\"\n[training]\nseq_len = 12\ntokens_per_step = 12\nsteps = 1\n");
  const std::vector<std::int64_t> documents{0, 5, kSeqLen};
  const char* const names[] = {"window", "prefix", "global", "block"};
  int accepted = 0;
  // Each number absent, 0, small, beyond the sequence.
  const std::optional<std::int64_t> values[] = {std::nullopt, 0, 3, 13};
  for (const std::string& mask : config_schema().find("data", "mask")->choices) {
    for (int which = 0; which < 256; ++which) {
      DataConfig data;
      data.mask = mask;
      std::vector<std::string> overrides{"data.mask=" + mask};
      std::optional<std::int64_t>* const numbers[] = {&data.window, &data.prefix, &data.global,
                                                      &data.block};
      for (int i = 0; i < 4; ++i) {
        *numbers[i] = values[which >> (2 * i) & 3];
        if (*numbers[i])
          overrides.push_back("data." + std::string(names[i]) + "=" + std::to_string(**numbers[i]));
      }
      std::string config_error, mask_error;
      try {
        load_config(folder.file("run.toml"), overrides);
      } catch (const runtime::Error& error) {
        config_error = error.what();
      }
      try {
        sequence_mask(data, {documents, 0});
        ++accepted;
      } catch (const runtime::Error& error) {
        mask_error = error.what();
        EXPECT_EQ(error.code(), runtime::ExitCode::config);
      }
      EXPECT_EQ(config_error.empty(), mask_error.empty()) << mask_text(data) << "\n"
                                                          << config_error << "\n"
                                                          << mask_error;
    }
  }
  EXPECT_EQ(accepted, 2 + 3 * 3 + 2 * 2 + 3 * 2 * 2 + 2 * 2 + (1 + 2) + 2 + 2 + 2);
}

}  // namespace
}  // namespace longhaul::launch

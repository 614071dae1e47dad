// launch/study: its configurations load and differ in their models alone; its script is sound.
#include <gtest/gtest.h>

#include "launch/config.h"
#include "launch/model.h"
#include "models/family.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

const std::string kStudy = std::string(LONGHAUL_SOURCE_DIR) + "/launch/study/";

TEST(Study, ConfigurationsDifferInTheirModelsAlone) {
  std::string others;
  for (const auto& [name, word, count] :
       {std::tuple("softmax", "full_attention", 4), std::tuple("lightning", "linear_attention", 4),
        std::tuple("gdn", "linear_attention", 4), std::tuple("hybrid", "linear_attention", 3)}) {
    TrainConfig config =
        load_config(kStudy + name + ".toml", {}, std::int64_t{2}, NamedFiles::unread).config;
    EXPECT_EQ(config.model.hidden_size, 192) << name;
    const auto layers = models::family_of(config.model.architecture).layers(config.model);
    EXPECT_EQ(std::ranges::count(layers, word), count) << name;
    EXPECT_EQ(config.job.output_dir, std::string("runs/study/") + name);
    config.job.output_dir = "one";
    std::string text = to_toml(config);
    text.erase(text.find("[model]"), text.find("[data]") - text.find("[model]"));
    if (others.empty()) others = text;
    EXPECT_EQ(text, others) << name;
  }
}

TEST(Study, TheScriptIsSoundAndRefusesWrongWords) {
  const auto sound = test::run_process({"bash", "-n", kStudy + "run"});
  EXPECT_EQ(sound.exit_code, 0) << sound.err;
  const auto wrong = test::run_process({kStudy + "run", "everything"});
  EXPECT_EQ(wrong.exit_code, 64);
  EXPECT_NE(wrong.err.find("'everything' is not known"), std::string::npos) << wrong.err;
}

}  // namespace
}  // namespace longhaul::launch

// launch/study and launch/stragglers: configurations load, those of the study differ in their
// models alone; the scripts are sound.
#include <gtest/gtest.h>

#include "launch/config.h"
#include "launch/model.h"
#include "models/family.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

const std::string kStudy = std::string(LONGHAUL_SOURCE_DIR) + "/launch/study/";
const std::string kStragglers = std::string(LONGHAUL_SOURCE_DIR) + "/launch/stragglers/";

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
  for (const std::string& folder : {kStudy, kStragglers}) {
    const auto sound = test::run_process({"bash", "-n", folder + "run"});
    EXPECT_EQ(sound.exit_code, 0) << sound.err;
    const auto wrong = test::run_process({folder + "run", "everything"});
    EXPECT_EQ(wrong.exit_code, 64);
    EXPECT_NE(wrong.err.find("'everything' is not known"), std::string::npos) << wrong.err;
  }
}

TEST(Study, StragglersTrainOverEightRanksUnderEveryLayoutOfTheScript) {
  for (const auto& [layout, scheme] :
       {std::pair("contiguous", "group_cast"), std::pair("zigzag", "group_cast"),
        std::pair("document_zigzag", "ring"), std::pair("balanced", "group_cast"),
        std::pair("packed", "disaggregated")}) {
    const std::string key = "parallelism.context_parallel_";
    EXPECT_NO_THROW(load_config(kStragglers + "mix.toml",
                                {key + "layout=" + layout, key + "scheme=" + scheme,
                                 "debug.pretend=flops=4e10"},
                                std::int64_t{8}, NamedFiles::unread)
                        .check())
        << layout;
  }
}

}  // namespace
}  // namespace longhaul::launch

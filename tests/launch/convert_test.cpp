// Weights between Hugging Face folders and checkpoints.
#include "launch/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/support/expect_error.h"
#include "tests/support/hf_folders.h"
#include "tests/support/process.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using runtime::ExitCode;
using runtime::safetensors::Element;
using test::changed;
using test::contents_of;
using test::expect_error;
using test::HfTensor;
using test::llama_config;
using test::llama_tensors;
using test::TempDirectory;
using test::write_hf_folder;

/// Runs without the lines that people read.
void convert(const fs::path& source, const fs::path& output,
             const std::optional<std::string>& dtype = std::nullopt) {
  testing::internal::CaptureStdout();
  try {
    run_convert({source, output, dtype});
  } catch (...) {
    testing::internal::GetCapturedStdout();
    throw;
  }
  testing::internal::GetCapturedStdout();
}

/// What a folder becomes by way of a checkpoint.
std::map<std::string, std::string> there_and_back(const TempDirectory& folder) {
  convert(folder / "hf", folder / "checkpoints");
  convert(folder / "checkpoints", folder / "back");
  return contents_of(folder / "back");
}

/// Nothing but what is named here is left in the folder.
void expect_only(const TempDirectory& folder, std::vector<std::string> names) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder.path()))
    found.push_back(entry.path().filename().string());
  std::ranges::sort(found);
  std::ranges::sort(names);
  EXPECT_EQ(found, names);
}

TEST(Convert, AFolderComesBackByteForByte) {
  const TempDirectory folder;
  std::vector<HfTensor> tensors = llama_tensors();
  tensors[1].element = Element::bf16;
  tensors[2].element = Element::f16;
  write_hf_folder(folder / "hf", llama_config(), tensors);
  const auto back = there_and_back(folder);
  EXPECT_EQ(back, contents_of(folder / "hf"));
  EXPECT_EQ(back.size(), 6u);
  const std::string readme = test::read_text(folder / "back/README.md");
  EXPECT_NE(readme.find(folder.file("hf")), std::string::npos) << readme;
}

TEST(Convert, AShardedFolderComesBackByteForByte) {
  const TempDirectory folder;
  write_sharded_folder(folder / "hf", llama_config(), llama_tensors(), 3);
  EXPECT_EQ(there_and_back(folder), contents_of(folder / "hf"));
}

TEST(Convert, ATiedHeadStaysOutAndAnEqualOneStaysIn) {
  for (const bool redundant : {false, true}) {
    SCOPED_TRACE(redundant);
    const TempDirectory folder;
    std::vector<HfTensor> tensors = llama_tensors();
    tensors.back().values_of = "model.embed_tokens.weight";
    if (!redundant) tensors.pop_back();
    write_hf_folder(folder / "hf", llama_config({{"tie_word_embeddings", "true"}}), tensors);
    EXPECT_EQ(there_and_back(folder), contents_of(folder / "hf"));
  }
}

TEST(Convert, FrequenciesOfOldFilesAreLeftOut) {
  const TempDirectory folder;
  std::vector<HfTensor> tensors = llama_tensors();
  write_hf_folder(folder / "without", llama_config(), tensors);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {2}});
  write_hf_folder(folder / "hf", llama_config(), tensors);
  EXPECT_EQ(there_and_back(folder), contents_of(folder / "without"));
}

TEST(Convert, AnotherDtypeKeepsTheValues) {
  const TempDirectory folder;
  write_hf_folder(folder / "hf", llama_config(), llama_tensors());
  convert(folder / "hf", folder / "checkpoints");
  for (const auto& [dtype, element] :
       {std::pair("bfloat16", Element::bf16), {"float16", Element::f16}}) {
    convert(folder / "checkpoints/step-00000000", folder / dtype, dtype);
    std::vector<HfTensor> tensors = llama_tensors();
    for (HfTensor& tensor : tensors) tensor.element = element;
    test::write_safetensors(folder / "expected", tensors);
    EXPECT_EQ(test::read_text(folder / dtype / "model.safetensors"),
              test::read_text(folder / "expected"));
    fs::remove(folder / "expected");
    const auto config = nlohmann::json::parse(test::read_text(folder / dtype / "config.json"));
    EXPECT_EQ(config.at("torch_dtype"), dtype);
    EXPECT_EQ(config.at("dtype"), dtype);
    EXPECT_EQ(config.at("rope_theta"), 500000.0);
    EXPECT_EQ(config.at("rope_parameters").at("rope_theta"), 500000.0);
    EXPECT_EQ(config.at("eos_token_id"), nlohmann::json({2, 7}));
  }
}

TEST(Convert, WrongTensorsAreNamed) {
  struct Case {
    std::string said;
    std::function<void(std::vector<HfTensor>&)> spoil;
    std::map<std::string, std::string> changes = {};
  };
  const std::string k = "model.layers.1.self_attn.k_proj.weight";
  const auto find = [](std::vector<HfTensor>& tensors, const std::string& name) {
    return std::ranges::find(tensors, name, &HfTensor::name);
  };
  const std::vector<Case> cases = {
      {"k_proj.weight' [8, 16] is missing", [&](auto& t) { t.erase(find(t, k)); }},
      {"k_proj.weight' is [8, 15]; the configuration makes it [8, 16]",
       [&](auto& t) {
         find(t, k)->sizes = {8, 15};
       }},
      {"k_proj.weight' is [128]; the configuration makes it [8, 16]",
       [&](auto& t) { find(t, k)->sizes = {128}; }},
      {"'model.layers.2.input_layernorm.weight' [16] is no tensor of this model",
       [&](auto& t) {
         t.push_back({"model.layers.2.input_layernorm.weight", {16}});
       }},
      {"'lm_head.weight' [31, 16] is missing", [](auto& t) { t.pop_back(); }},
      {"'lm_head.weight' differs from 'model.embed_tokens.weight'",
       [](auto&) {},
       {{"tie_word_embeddings", "true"}}},
      {"'model.embed_tokens.weight' is [31, 16]; the configuration makes it [32, 16]",
       [](auto&) {},
       {{"vocab_size", "32"}}},
  };
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.said);
    const TempDirectory folder;
    std::vector<HfTensor> tensors = llama_tensors();
    wrong.spoil(tensors);
    write_hf_folder(folder / "hf", llama_config(wrong.changes), tensors);
    expect_error(ExitCode::data, wrong.said,
                 [&] { convert(folder / "hf", folder / "checkpoints"); });
    expect_only(folder, {"hf"});
  }
}

TEST(Convert, WhatIsThereIsNotReplaced) {
  const TempDirectory folder;
  write_hf_folder(folder / "hf", llama_config(), llama_tensors());
  convert(folder / "hf", folder / "checkpoints");
  expect_error(ExitCode::usage, "holds checkpoints already",
               [&] { convert(folder / "hf", folder / "checkpoints"); });
  fs::create_directory(folder / "empty");
  expect_error(ExitCode::usage, "exists already",
               [&] { convert(folder / "checkpoints", folder / "empty"); });
  expect_error(ExitCode::usage, "--dtype",
               [&] { convert(folder / "hf", folder / "other", "float32"); });
  expect_error(ExitCode::usage, "expected float32, bfloat16 or float16",
               [&] { convert(folder / "checkpoints", folder / "other", "int8"); });
  expect_error(ExitCode::data, "does not exist",
               [&] { convert(folder / "nothing", folder / "other"); });
  expect_only(folder, {"checkpoints", "empty", "hf"});
}

TEST(Convert, AModelThatSawSomethingElseThanTheTokensBeforeIsRefused) {
  struct Case {
    std::string mask;
    std::optional<std::int64_t> window, prefix;
    std::string said;  // "": exported
  };
  const std::vector<Case> cases = {
      {"causal", {}, {}, ""},
      {"documents", {}, {}, ""},
      {"causal_document", 8, {}, "data.mask = \"causal_document\" and data.window = 8"},
      {"causal_window", 8, {}, "data.mask = \"causal_window\" and data.window = 8"},
      {"prefix_causal", {}, 4, "data.mask = \"prefix_causal\";"}};
  const auto sequence = [](std::int64_t cursor) { return test::random_sequence(31, 24, cursor); };
  for (const Case& tried : cases) {
    SCOPED_TRACE(tried.said);
    const TempDirectory folder;
    TrainConfig config = test::small_training(24);
    config.data.mask = tried.mask;
    config.data.window = tried.window;
    config.data.prefix = tried.prefix;
    test::run_training(config, 31, sequence, {.steps = 1, .save_to = folder.file("run")});
    if (tried.said.empty()) {
      convert(folder / "run", folder / "hf");
      continue;
    }
    expect_error(ExitCode::config, tried.said, [&] { convert(folder / "run", folder / "hf"); });
    expect_only(folder, {"run"});
  }
}

TEST(Convert, AnExportThatIsKilledLeavesNothingUnderItsName) {
  const TempDirectory folder;
  std::vector<HfTensor> tensors = llama_tensors();
  tensors.front().sizes = tensors.back().sizes = {30000, 16};
  write_hf_folder(folder / "hf", llama_config({{"vocab_size", "30000"}}), tensors);
  convert(folder / "hf", folder / "checkpoints");
  int killed = 0;
  for (int i = 0; i < 6; ++i) {
    const fs::path output = folder / ("back" + std::to_string(i));
    test::Process process({test::longhaul_program(), "convert", folder.file("checkpoints"),
                           "--output", output.string()});
    const auto begins_with = [&](const std::string& name) {
      for (const auto& entry : fs::directory_iterator(folder.path()))
        if (entry.path().filename().string().starts_with(name)) return true;
      return false;
    };
    while (process.running() && !begins_with(output.filename().string() + ".tmp-"))
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    std::this_thread::sleep_for(std::chrono::milliseconds(i));
    process.signal(SIGKILL);
    killed += process.wait().signal == SIGKILL;
    if (fs::exists(output)) {
      EXPECT_EQ(contents_of(output), contents_of(folder / "hf"));
    }
  }
  EXPECT_GT(killed, 0);
}

}  // namespace
}  // namespace longhaul::launch

#pragma once
// A right configuration and its corpus in a folder of their own, for tests that replace lines of
// it.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "launch/config.h"
#include "runtime/error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::test {

/// Line by line: cases replace lines of it.
inline const std::vector<std::string> kConfigLines = {
    "[job]",                        // 1
    "output_dir = \"OUT\"",         // 2
    "[model]",                      // 3
    "hidden_size = 256",            // 4
    "intermediate_size = 688",      // 5
    "num_hidden_layers = 4",        // 6
    "num_attention_heads = 8",      // 7
    "num_key_value_heads = 4",      // 8
    "[data]",                       // 9
    "corpus = \"CORPUS\"",          // 10
    "[training]",                   // 11
    "seq_len = 4096",               // 12
    "tokens_per_step = 8192",       // 13
    "steps = 100",                  // 14
    "[lr_scheduler]",               // 15
    "warmup_steps = 10",            // 16
    "[parallelism]",                // 17
    "context_parallel_degree = 4",  // 18
};

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() : corpus_(folder_.write("corpus.h5", "not read here")) {}

  std::string text_with(const std::map<int, std::string>& replaced) const {
    std::string text;
    const auto last = std::max<int>(static_cast<int>(kConfigLines.size()),
                                    replaced.empty() ? 0 : replaced.rbegin()->first);
    for (int line = 1; line <= last; ++line) {
      const auto found = replaced.find(line);
      const auto index = static_cast<std::size_t>(line - 1);
      text += (found != replaced.end()       ? found->second
               : index < kConfigLines.size() ? kConfigLines[index]
                                             : "") +
              "\n";
    }
    for (const auto& [from, to] :
         {std::pair<std::string, std::string>("\"CORPUS\"", "\"" + corpus_ + "\""),
          std::pair<std::string, std::string>("\"OUT\"", "\"" + folder_.file("out") + "\"")}) {
      const auto at = text.find(from);
      if (at != std::string::npos) text.replace(at, from.size(), to);
    }
    return text;
  }
  std::string file_with(const std::map<int, std::string>& replaced) const {
    return folder_.write("run.toml", text_with(replaced));
  }
  launch::TrainConfig load(const std::map<int, std::string>& replaced = {},
                           const std::vector<std::string>& overrides = {},
                           std::optional<std::int64_t> world = std::nullopt) const {
    return launch::load_config(file_with(replaced), overrides, world).config;
  }
  /// The problems as lines "line:column: message" (or "--set ...: message"), without the heading.
  std::vector<std::string> problems(const std::map<int, std::string>& replaced,
                                    const std::vector<std::string>& overrides = {},
                                    std::optional<std::int64_t> world = std::nullopt) const {
    const std::string path = file_with(replaced);
    try {
      launch::load_config(path, overrides, world);
    } catch (const runtime::Error& error) {
      EXPECT_EQ(error.code(), runtime::ExitCode::config) << error.what();
      std::istringstream text(error.what());
      std::vector<std::string> lines;
      std::string line, heading;
      std::getline(text, heading);
      while (std::getline(text, line)) {
        if (line.starts_with(path + ":")) line.erase(0, path.size() + 1);
        lines.push_back(line);
      }
      EXPECT_TRUE(heading.starts_with(fmt::format("{} problem", lines.size()))) << heading;
      return lines;
    }
    return {};
  }

  TempDirectory folder_;
  std::string corpus_;
};

}  // namespace longhaul::test

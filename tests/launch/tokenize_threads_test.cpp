// Tokenizing on several threads: what one would have made, and what it would have refused.
#include <gtest/gtest.h>

#include <random>

#include "launch/tokenize.h"
#include "runtime/io/corpus.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using test::TempDirectory;
namespace fs = std::filesystem;

TokenizeOptions options_of(const TempDirectory& folder, const std::string& output, int threads) {
  TokenizeOptions options{{folder / "in"}, folder / output, "bytes"};
  options.threads = threads;
  return options;
}

/// Files of all sizes, most of them small, and records of which some have weights; `documents` and
/// `weights` are what they hold.
void write_inputs(const TempDirectory& folder, std::vector<std::string>& documents,
                  std::vector<float>& weights) {
  fs::create_directory(folder / "in");
  std::mt19937 random(3);
  const auto text_of = [&](std::size_t size) {
    std::string text(size, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 26);
    return text;
  };
  const auto add = [&](const std::string& prompt, const std::string& text) {
    documents.push_back(prompt + text);
    weights.insert(weights.end(), prompt.size(), 0.0f);
    weights.insert(weights.end(), text.size(), 1.0f);
  };
  for (int i = 0; i < 120; ++i) {
    const std::string name = "in/" + std::to_string(1000 + i);
    if (i % 10 != 7) {
      add("", text_of(i % 31 == 5 ? 700'000 : random() % 300));
      folder.write(name, documents.back());
      continue;
    }
    std::string lines;
    for (int line = 0; line < (i == 57 ? 9000 : 40); ++line) {
      const std::string prompt = line % 3 == 0 ? "" : text_of(random() % 20);
      const std::string completion = text_of(random() % 60);
      add(prompt, completion);
      lines += line % 3 == 0 ? "{\"text\": \"" + completion + "\"}\n"
                             : "{\"prompt\": \"" + prompt + "\", \"completion\": \"" + completion +
                                   "\", \"id\": 1}\n\n";
    }
    folder.write(name + ".jsonl", lines);
  }
}

TEST(TokenizeThreads, GiveWhatIsInTheFilesWhateverTheirNumber) {
  const TempDirectory folder;
  std::vector<std::string> documents;
  std::vector<float> weights;
  write_inputs(folder, documents, weights);
  std::string first;
  for (const int threads : {1, 3, 8}) {
    const std::string name = std::to_string(threads) + ".h5";
    std::int64_t told = 0, tokens = 0, bytes = 0;
    TokenizeOptions options = options_of(folder, name, threads);
    options.progress = [&](const TokenizeProgress& progress) {
      ++told;
      EXPECT_GE(progress.tokens, tokens);
      EXPECT_GE(progress.bytes, bytes);
      tokens = progress.tokens;
      bytes = progress.bytes;
    };
    const TokenizeSummary summary = tokenize(options);
    EXPECT_EQ(told, std::ssize(documents) + 2);
    EXPECT_EQ(summary.documents, std::ssize(documents));
    EXPECT_EQ(summary.unused_fields.at("id"), 11 * 26 + 6000);
    EXPECT_EQ(summary.threads, threads);
    if (threads > 1) {
      EXPECT_TRUE(test::read_text(folder / name) == first) << threads;
      continue;
    }
    first = test::read_text(folder / name);
    const runtime::Corpus corpus = runtime::Corpus::open(folder / name);
    std::string all;
    for (std::size_t i = 0; i < documents.size(); ++i) {
      all += documents[i];
      ASSERT_EQ(corpus.documents()[i + 1], std::ssize(all)) << i;
    }
    std::vector<std::int32_t> ids(all.size());
    std::vector<float> stored(all.size());
    corpus.read(0, ids);
    corpus.read_label_weights(0, stored);
    EXPECT_TRUE(std::ranges::equal(ids, all));
    EXPECT_TRUE(stored == weights);
  }
}

TEST(TokenizeThreads, TheFirstBadDocumentIsTheOneNamed) {
  const TempDirectory folder;
  fs::create_directory(folder / "in");
  for (int i = 0; i < 30; ++i) folder.write("in/" + std::to_string(100 + i), "text");
  folder.write("in/110.jsonl",
               "{\"text\": \"" + std::string(300'000, 'a') + "\"}\n{\"text\": 1}\n");
  folder.write("in/112.jsonl", "no record\n");
  for (const int threads : {1, 8}) {
    test::expect_error(ExitCode::data, "in/110.jsonl:2: field 'text' is a number",
                       [&] { tokenize(options_of(folder, "c.h5", threads)); });
  }
  // A file that is gone when its turn comes is behind a bad one before it.
  for (const char* gone : {"in/1105", "in/1095"}) {
    for (const int threads : {1, 8}) {
      folder.write(gone, "text");
      TokenizeOptions options = options_of(folder, "c.h5", threads);
      options.progress = [&](const TokenizeProgress&) { fs::remove(folder / gone); };
      const bool before = std::string(gone) == "in/1095";
      test::expect_error(before ? ExitCode::io : ExitCode::data,
                         before ? gone : "in/110.jsonl:2: field 'text' is a number",
                         [&] { tokenize(options); });
    }
  }
  EXPECT_FALSE(fs::exists(folder / "c.h5"));
}

}  // namespace
}  // namespace longhaul::launch

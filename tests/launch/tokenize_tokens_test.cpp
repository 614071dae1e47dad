// Files of tokens as inputs of `longhaul tokenize`: which files they are, and what they need.
#include <gtest/gtest.h>

#include <cstring>

#include "launch/tokenize.h"
#include "runtime/io/corpus.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::Corpus;
using runtime::ExitCode;
using test::TempDirectory;
namespace fs = std::filesystem;

template <class T>
std::string packed(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// PREFIX.idx and PREFIX.bin of three documents: of two sequences, of none, of one.
void write_megatron(const TempDirectory& folder, const std::string& prefix) {
  folder.write(prefix + ".bin", packed<std::uint16_t>({10, 11, 12, 13, 300}));
  folder.write(prefix + ".idx",
               std::string("MMIDIDX\0\0", 9) + packed<std::uint64_t>({1}) + '\x08' +
                   packed<std::uint64_t>({3, 4}) + packed<std::int32_t>({1, 2, 2}) +
                   packed<std::int64_t>({0, 2, 6}) + packed<std::int64_t>({0, 2, 2, 3}));
}

void write_llmc(const TempDirectory& folder, const std::string& name,
                const std::vector<std::uint16_t>& tokens = {400, 1, 400, 2, 3}) {
  std::string head = packed<std::int32_t>({20240520, 1, static_cast<std::int32_t>(tokens.size())});
  head.resize(1024);
  folder.write(name, head + packed(tokens));
}

std::vector<std::vector<std::int32_t>> documents_of(const fs::path& path) {
  const Corpus corpus = Corpus::open(path);
  std::vector<std::vector<std::int32_t>> documents;
  for (std::size_t d = 0; d + 1 < corpus.documents().size(); ++d) {
    const std::int64_t begin = corpus.documents()[d], end = corpus.documents()[d + 1];
    documents.emplace_back(static_cast<std::size_t>(end - begin));
    corpus.read(begin, documents.back());
  }
  return documents;
}

TEST(TokenizeTokens, TakesTheDocumentsOfEveryFormatInOrder) {
  const TempDirectory folder;
  fs::create_directory(folder / "in");
  write_megatron(folder, "in/b");
  write_llmc(folder, "in/c.bin");
  TokenizeOptions options{.paths = {folder / "in"}, .output = folder / "c.h5"};
  options.vocabulary_size = 401;
  options.document_start = 400;
  options.eos = "0";
  std::int64_t bytes = 0;
  options.progress = [&](const TokenizeProgress& progress) {
    EXPECT_GE(progress.bytes, bytes);
    EXPECT_LE(progress.bytes, progress.all_bytes);
    bytes = progress.bytes;
  };
  const TokenizeSummary summary = tokenize(options);
  EXPECT_EQ(summary.inputs.files.size(), 2u);
  EXPECT_EQ(bytes, summary.inputs.bytes);
  EXPECT_EQ(summary.documents, 5);
  EXPECT_EQ(summary.tokens, 15);
  EXPECT_EQ(summary.files_without_start.count, 0);
  EXPECT_EQ(documents_of(folder / "c.h5"),
            (std::vector<std::vector<std::int32_t>>{
                {10, 11, 12, 0}, {0}, {13, 300, 0}, {400, 1, 0}, {400, 2, 3, 0}}));
  EXPECT_EQ(Corpus::open(folder / "c.h5").info().tokenizer, "unknown");
  EXPECT_EQ(Corpus::open(folder / "c.h5").info().vocabulary_size, 401);

  // Either name stands for the pair, which is taken once.
  options = {.paths = {folder / "in/b.bin", folder / "in/b.idx"}, .output = folder / "d.h5"};
  options.vocabulary_size = 301;
  EXPECT_EQ(tokenize(options).documents, 3);
  // Files of other kinds that have these names are texts.
  folder.write("t.bin", "abc");
  folder.write("t.idx", "de");
  options = {.paths = {folder / "t.bin", folder / "t.idx"}, .output = folder / "e.h5"};
  EXPECT_EQ(tokenize(options).tokens, 5);
}

TEST(TokenizeTokens, BesideTextsTheyAreOfTheTokenizer) {
  const TempDirectory folder;
  write_llmc(folder, "a.bin", {200, 1, 200, 2, 3});
  folder.write("b.txt", "hi");
  folder.write("c.jsonl", "{\"text\": \"ho\"}\n");
  TokenizeOptions options{
      {folder / "b.txt", folder / "a.bin", folder / "c.jsonl"}, folder / "c.h5", "bytes"};
  options.document_start = 200;
  std::vector<std::int64_t> bytes;
  options.progress = [&](const TokenizeProgress& progress) { bytes.push_back(progress.bytes); };
  tokenize(options);
  EXPECT_EQ(documents_of(folder / "c.h5"), (std::vector<std::vector<std::int32_t>>{
                                               {104, 105}, {200, 1}, {200, 2, 3}, {104, 111}}));
  EXPECT_EQ(bytes, (std::vector<std::int64_t>{0, 2, 1036, 1036, 1051, 1051}));
  write_llmc(folder, "a.bin", {200, 1, 256});
  options.output = folder / "d.h5";
  test::expect_error(ExitCode::data, "a.bin: token 2 is 256, outside the vocabulary of 256",
                     [&] { tokenize(options); });
}

TEST(TokenizeTokens, OneDocumentGetsOneTokenBeforeItHoweverLongItIs) {
  const TempDirectory folder;
  write_llmc(folder, "a.bin", std::vector<std::uint16_t>(200'000, 5));
  TokenizeOptions options{.paths = {folder / "a.bin"}, .output = folder / "c.h5"};
  options.vocabulary_size = 10;
  options.document_start = 9;
  options.bos = "1";
  options.eos = "2";
  const TokenizeSummary summary = tokenize(options);
  EXPECT_EQ(summary.documents, 1);
  EXPECT_EQ(summary.tokens, 200'002);
  EXPECT_EQ(documents_of(folder / "c.h5")[0].front(), 1);
  const std::string said = to_string(summary);
  EXPECT_NE(said.find("\n  one document    1 file in which the id of --document-start is not (" +
                      (folder / "a.bin").string() + ")\n"),
            std::string::npos)
      << said;
  // Where a document begins later, the file has it.
  write_llmc(folder, "b.bin", {5, 9, 5});
  options.paths = {folder / "b.bin"};
  options.output = folder / "d.h5";
  EXPECT_EQ(tokenize(options).files_without_start.count, 0);
}

TEST(TokenizeTokens, WhatIsMissingIsAskedFor) {
  const TempDirectory folder;
  write_megatron(folder, "m");
  write_llmc(folder, "l.bin");
  folder.write("t.txt", "text");
  const auto refused = [&](ExitCode code, const std::string& why, const std::string& input,
                           std::optional<std::int64_t> vocabulary = {},
                           std::optional<std::int64_t> start = {},
                           std::optional<std::string> tokenizer = {}) {
    TokenizeOptions options{{folder / input}, folder / "c.h5", tokenizer};
    options.vocabulary_size = vocabulary;
    options.document_start = start;
    test::expect_error(code, why, [&] { tokenize(options); });
    EXPECT_FALSE(fs::exists(folder / "c.h5"));
  };
  using enum ExitCode;
  refused(usage, "m.idx: holds token ids; name the --tokenizer", "m.bin");
  refused(usage, "l.bin: holds token ids; name the --tokenizer", "l.bin", {}, 400);
  refused(usage,
          "l.bin: a file of tokens of llm.c does not say where its documents begin; give "
          "--document-start",
          "l.bin", 500);
  refused(usage, "t.txt: is text, which --vocab-size has no use for", "t.txt", 500);
  refused(usage, "--document-start is of llm.c's files", "m.idx", 500, 400);
  refused(usage, "give only one", "m.idx", 500, {}, "bytes");
  refused(usage, "--document-start 401: the ids of tokenizer unknown are 0 to 400", "l.bin", 401,
          401);
  refused(usage, "--document-start -1: the ids of", "l.bin", 401, -1);
  refused(usage, "--document-start 400: the ids of tokenizer bytes are", "l.bin", {}, 400, "bytes");
  refused(usage, "--vocab-size is 0; expected 1 to 2147483648", "m.idx", 0);
  refused(data, "m.bin: token 4 is 300, outside the vocabulary of 300", "m.idx", 300);
  fs::remove(folder / "m.bin");
  refused(io, "m.bin: is not there; ", "m.idx", 500);
}

TEST(TokenizeTokens, OptionsOfTheCommandLine) {
  const TempDirectory folder;
  write_llmc(folder, "l.bin");
  folder.write("t.txt", "a\xff");
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "tokenize");
    arguments.insert(arguments.end(), {"--output", (folder / "c.h5").string(), "--force"});
    return test::run_longhaul(arguments);
  };
  const std::string tokens = (folder / "l.bin").string(), text = (folder / "t.txt").string();
  const auto taken = run(
      {tokens, "--vocab-size", "401", "--document-start", "400", "--bos", "7", "--threads", "2"});
  EXPECT_EQ(taken.exit_code, 0) << taken.err;
  EXPECT_NE(taken.out.find("2 documents, 7 tokens (unknown, vocabulary 401)"), std::string::npos)
      << taken.out;
  EXPECT_NE(taken.out.find("\n  begin with      7, 7\n"), std::string::npos) << taken.out;
  EXPECT_NE(taken.out.find(" tokens/s, 2 threads"), std::string::npos) << taken.out;
  EXPECT_EQ(run({text, "--invalid-utf8", "refuse"}).exit_code, 0);  // "bytes" keeps every byte
  EXPECT_EQ(run({text, "--invalid-utf8", "drop"}).exit_code, 64);
  EXPECT_EQ(run({text, "--threads", "0"}).exit_code, 64);
}

}  // namespace
}  // namespace longhaul::launch

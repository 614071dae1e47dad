#include "launch/tokenize.h"

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "runtime/io/corpus.h"
#include "runtime/io/tokenizer.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::Corpus;
using runtime::ExitCode;
using test::expect_error;
using test::TempDirectory;
namespace fs = std::filesystem;

void put(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  test::write_text(path, text);
}

/// The documents of a corpus as texts.
std::vector<std::string> texts(const fs::path& path, const std::string& tokenizer = "bytes") {
  const Corpus corpus = Corpus::open(path);
  const auto decoder = runtime::make_tokenizer(tokenizer);
  std::vector<std::string> documents;
  for (std::int64_t i = 0; i < corpus.info().documents; ++i) {
    const std::int64_t begin = corpus.documents()[static_cast<std::size_t>(i)];
    const std::int64_t end = corpus.documents()[static_cast<std::size_t>(i) + 1];
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(end - begin));
    corpus.read(begin, tokens);
    documents.push_back(decoder->decode(tokens));
  }
  return documents;
}

TEST(Tokenize, OneDocumentAFileInPathOrder) {
  TempDirectory folder;
  const std::string binary("\x00\xff\x80 bytes\n", 10);
  put(folder / "in/b/z.txt", "zz");
  put(folder / "in/b/a.txt", "");
  put(folder / "in/a.txt", "hello");
  put(folder / "in/b.txt", binary);
  put(folder / "other", "other");
  fs::create_directory(folder / "in/empty");
  fs::create_symlink(folder / "in", folder / "in/loop");  // not entered
  fs::create_symlink(folder / "other", folder / "in/c");
  const TokenizeSummary summary =
      tokenize({{folder / "other", folder / "in"}, folder / "c.h5", "bytes"});
  // Byte order of the whole path: '.' sorts before '/'.
  EXPECT_EQ(texts(folder / "c.h5"),
            (std::vector<std::string>{"other", "hello", binary, "", "zz", "other"}));
  EXPECT_EQ(summary.documents, 6);
  EXPECT_EQ(summary.tokens, 27);
  EXPECT_EQ(summary.longest_document_tokens, 10);
  EXPECT_EQ(summary.vocabulary_size, 256);
  EXPECT_NE(to_string(summary).find("6 documents, 27 tokens (bytes, vocabulary 256)"),
            std::string::npos)
      << to_string(summary);
  EXPECT_EQ(Corpus::open(folder / "c.h5").info().tokenizer, "bytes");
}

TEST(Tokenize, EqualInputsGiveEqualBytes) {
  TempDirectory folder;
  put(folder / "in/a", "some text");
  put(folder / "in/b", std::string(100000, 'x'));
  tokenize({{folder / "in"}, folder / "1.h5", "bytes"});
  ::usleep(1100000);
  tokenize({{folder / "in"}, folder / "2.h5", "bytes"});
  EXPECT_EQ(test::read_text(folder / "1.h5"), test::read_text(folder / "2.h5"));
}

TEST(Tokenize, RefusesWhatItCannotRead) {
  TempDirectory folder;
  put(folder / "in/a", "text");
  const auto refused = [&](ExitCode code, const std::string& why, const TokenizeOptions& options) {
    expect_error(code, why, [&] { tokenize(options); });
    EXPECT_FALSE(fs::exists(folder / "c.h5"));
  };
  const fs::path output = folder / "c.h5";
  refused(ExitCode::usage, "no input", {{}, output, "bytes"});
  refused(ExitCode::usage, "no output", {{folder / "in"}, "", "bytes"});
  refused(ExitCode::io, "missing: does not exist",
          {{folder / "in", folder / "missing"}, output, "bytes"});
  refused(ExitCode::io, "none.model", {{folder / "in"}, output, (folder / "none.model").string()});
  refused(ExitCode::data, "not a SentencePiece model",
          {{folder / "in"}, output, (folder / "in/a").string()});
  refused(ExitCode::io, "nowhere", {{folder / "in"}, folder / "nowhere/c.h5", "bytes"});
  fs::create_directory(folder / "empty");
  refused(ExitCode::data, "holds no files", {{folder / "empty"}, output, "bytes"});
  fs::create_symlink(folder / "gone", folder / "in/broken");
  refused(ExitCode::io, "broken", {{folder / "in"}, output, "bytes"});
  fs::remove(folder / "in/broken");
  ASSERT_EQ(::mkfifo((folder / "in/pipe").c_str(), 0600), 0);
  refused(ExitCode::data, "pipe: is neither a file nor a folder",
          {{folder / "in"}, output, "bytes"});
  fs::remove(folder / "in/pipe");
  if (::geteuid() != 0) {  // root reads everything
    fs::permissions(folder / "in/a", fs::perms::none);
    refused(ExitCode::io, "in/a", {{folder / "in"}, output, "bytes"});
    fs::permissions(folder / "in/a", fs::perms::owner_all);
  }
  tokenize({{folder / "in"}, folder / "in/c.h5", "bytes"});
  expect_error(ExitCode::usage, "is among the inputs", [&] {
    tokenize({{folder / "in"}, folder / "in/c.h5", "bytes"});
  });
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2) << "something was left";
}

TEST(Tokenize, ReplacesOnlyFilesAndOnlyWhenForced) {
  TempDirectory folder;
  put(folder / "in/a", "text");
  put(folder / "real.h5", "keep");
  fs::create_symlink("real.h5", folder / "link.h5");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const char* name : {"real.h5", "link.h5"}) {
    expect_error(ExitCode::usage, "--force", [&] {
      tokenize({{folder / "in"}, folder / name, "bytes"});
    });
  }
  EXPECT_EQ(test::read_text(folder / "real.h5"), "keep");
  for (const bool force : {false, true}) {
    expect_error(ExitCode::usage, "pipe: is a named pipe", [&] {
      tokenize({{folder / "in"}, folder / "pipe", "bytes", force});
    });
    EXPECT_TRUE(fs::is_fifo(folder / "pipe"));
  }
  tokenize({{folder / "in"}, folder / "link.h5", "bytes", true});
  EXPECT_TRUE(fs::is_symlink(folder / "link.h5"));
  EXPECT_EQ(Corpus::open(folder / "real.h5").info().tokens, 4);
}

TEST(Tokenize, SentencePieceModels) {
  TempDirectory folder;
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += "the quick brown fox number " + std::to_string(i) + " jumps\n";
  put(folder / "in/a.txt", text);
  put(folder / "in/b.txt", "");
  put(folder / "in/c.txt", "the brown fox");
  const std::string prefix = (folder / "m").string();
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--input=" + (folder / "in/a.txt").string() + " --model_prefix=" + prefix +
      " --model_type=bpe --vocab_size=400 --hard_vocab_limit=false --byte_fallback=true "
      "--minloglevel=2");
  ASSERT_TRUE(status.ok()) << status.ToString();
  const std::string model = prefix + ".model";
  const TokenizeSummary summary = tokenize({{folder / "in"}, folder / "c.h5", model});
  const Corpus corpus = Corpus::open(folder / "c.h5");
  EXPECT_EQ(corpus.info().vocabulary_size, runtime::make_tokenizer(model)->vocabulary_size());
  EXPECT_EQ(corpus.info().token_element, runtime::hdf5::Element::uint16);
  EXPECT_TRUE(corpus.info().tokenizer.starts_with("sentencepiece:m.model:"))
      << corpus.info().tokenizer;
  EXPECT_LT(summary.tokens, static_cast<std::int64_t>(text.size()) / 2);
  EXPECT_EQ(texts(folder / "c.h5", model)[2], "the brown fox");
  EXPECT_EQ(texts(folder / "c.h5", model)[1], "");
}

TEST(Tokenizer, ChecksIdsWhenDecoding) {
  const auto bytes = runtime::make_tokenizer("bytes");
  EXPECT_EQ(bytes->decode(std::vector<std::int32_t>{104, 105}), "hi");
  expect_error(ExitCode::data, "token 1 is 256", [&] {
    bytes->decode(std::vector<std::int32_t>{104, 256});
  });
  expect_error(ExitCode::data, "token 0 is -1",
               [&] { bytes->decode(std::vector<std::int32_t>{-1}); });
}

}  // namespace
}  // namespace longhaul::launch

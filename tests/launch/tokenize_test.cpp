#include "launch/tokenize.h"

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <mutex>

#include "launch/records.h"
#include "runtime/io/corpus.h"
#include "runtime/io/tokenizer.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"
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
  fs::create_symlink(folder / "gone", folder / "broken");
  refused(ExitCode::io, "broken: is a link to ", {{folder / "broken"}, output, "bytes"});
  fs::remove(folder / "broken");
  ASSERT_EQ(::mkfifo((folder / "in/pipe").c_str(), 0600), 0);
  refused(ExitCode::data, "pipe: is neither a file nor a folder",
          {{folder / "in/pipe"}, output, "bytes"});
  fs::remove(folder / "in/pipe");
  if (::geteuid() != 0) {  // root reads everything
    fs::permissions(folder / "in/a", fs::perms::none);
    refused(ExitCode::io, "in/a", {{folder / "in"}, output, "bytes"});
    fs::permissions(folder / "in/a", fs::perms::owner_all);
  }
  expect_error(ExitCode::usage, "is among the inputs", [&] {
    tokenize({{folder / "in"}, folder / "in/a", "bytes"});
  });
  EXPECT_EQ(test::read_text(folder / "in/a"), "text");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2) << "something was left";
}

TEST(Tokenize, CountsAndNamesWhatItLeavesOut) {
  TempDirectory folder;
  put(folder / "in/a", "text");
  put(folder / "in/.git/objects/x", "no text of ours");
  put(folder / "in/sub/.git", "gitdir: ../../.git/worktrees/sub");
  put(folder / "in/sub/.hg/store", "x");
  put(folder / "in/.gitignore", "text too");
  for (int i = 0; i < 7; ++i)
    fs::create_symlink("gone", folder / ("in/sub/link" + std::to_string(i)));
  fs::create_symlink("round", folder / "in/round");
  fs::create_symlink("..", folder / "in/up");
  ASSERT_EQ(::mkfifo((folder / "in/sub/pipe").c_str(), 0600), 0);
  fs::create_symlink("pipe", folder / "in/sub/pipe_too");
  tokenize({{folder / "in"}, folder / "in/earlier.h5", "bytes"});
  const TokenizeSummary summary = tokenize({{folder / "in"}, folder / "c.h5", "bytes"});
  EXPECT_EQ(texts(folder / "c.h5"), (std::vector<std::string>{"text too", "text"}));
  const std::string in = (folder / "in").string(), said = to_string(summary);
  for (const std::string& part :
       {"\n  left out        8 dangling links (" + in + "/round, " + in + "/sub/link0, " + in +
            "/sub/link1, " + in + "/sub/link2, " + in + "/sub/link3, ...)",
        "\n  left out        2 pipes, sockets or devices (" + in + "/sub/pipe, " + in +
            "/sub/pipe_too)",
        "\n  left out        1 linked folder (" + in + "/up)", std::string("3 repositories ("),
        in + "/sub/.git", in + "/sub/.hg",
        "\n  left out        1 earlier corpus or other HDF5 file (" + in + "/earlier.h5)"}) {
    EXPECT_NE(said.find(part), std::string::npos) << part << " is not in:\n" << said;
  }
  // The output is no input of its own: again into the same folder gives the same corpus.
  tokenize({{folder / "in"}, folder / "in/earlier.h5", "bytes", true});
  EXPECT_EQ(test::read_text(folder / "in/earlier.h5"), test::read_text(folder / "c.h5"));
  // What is asked for by name is taken, or refused.
  EXPECT_EQ(tokenize({{folder / "in/.git"}, folder / "g.h5", "bytes"}).documents, 1);
  expect_error(ExitCode::data, "earlier.h5: is an HDF5 file, such as a corpus", [&] {
    tokenize({{folder / "in/a", folder / "in/earlier.h5"}, folder / "d.h5", "bytes"});
  });
  fs::create_directory(folder / "only");
  fs::create_symlink("gone", folder / "only/link");
  expect_error(ExitCode::data, "only: holds no files", [&] {
    tokenize({{folder / "only"}, folder / "d.h5", "bytes"});
  });
}

TEST(Tokenize, RefusesACorpusWithoutATokenAndSoDoTrainAndValidate) {
  TempDirectory folder;
  put(folder / "in/a", "");
  put(folder / "in/b.jsonl", "{\"text\": \"\"}\n\n");
  expect_error(ExitCode::data, "in: no text in 2 files", [&] {
    tokenize({{folder / "in"}, folder / "c.h5", "bytes"});
  });
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "something was left";
  {
    runtime::CorpusWriter writer(folder / "empty.h5", 256, "bytes");  // an earlier build's
    writer.end_document();
    writer.finish();
  }
  put(folder / "run.toml",
      "[job]\noutput_dir = \"" + (folder / "out").string() +
          "\"\n[model]\nhidden_size = 16\nintermediate_size = 32\nnum_hidden_layers = 1\n"
          "num_attention_heads = 2\n[data]\ncorpus = \"" +
          (folder / "empty.h5").string() +
          "\"\n[training]\nseq_len = 1\ntokens_per_step = 1\nsteps = 1\n");
  for (const char* verb : {"train", "validate"}) {
    const auto result = test::run_longhaul({verb, (folder / "run.toml").string()});
    EXPECT_EQ(result.exit_code, 65) << result.err;
    EXPECT_NE(result.err.find("empty.h5: holds no token"), std::string::npos) << result.err;
  }
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(Tokenize, TellsItsProgress) {
  TempDirectory folder;
  put(folder / "in/a", std::string(1000, 'x'));
  put(folder / "in/b.jsonl", "{\"text\": \"abc\"}\n{\"text\": \"d\"}\n");
  std::vector<TokenizeProgress> told;
  tokenize({.paths = {folder / "in"},
            .output = folder / "c.h5",
            .progress = [&](const TokenizeProgress& progress) { told.push_back(progress); }});
  ASSERT_EQ(told.size(), 5u);  // the beginning, a document each, and the end
  EXPECT_EQ(told.front().bytes, 0);
  told.erase(told.begin());
  EXPECT_EQ(told[0].bytes, 1000);
  EXPECT_EQ(told[0].files, 0);
  EXPECT_EQ(told[1].bytes, 1016);  // inside the second file
  EXPECT_EQ(told[1].files, 1);
  EXPECT_EQ(told[2].bytes, 1030);
  EXPECT_EQ(told[3].files, 2);
  EXPECT_EQ(told[3].tokens, 1004);
  for (const TokenizeProgress& progress : told) {
    EXPECT_EQ(progress.all_files, 2);
    EXPECT_EQ(progress.all_bytes, 1030);
  }
  const std::int64_t mib = 1 << 20;
  EXPECT_EQ(progress_line({1200, 4000, 3 * mib, 12 * mib, 1234567}, 6),
            "tokenize 1,200 of 4,000 files | 3.0 of 12.0 MiB | 1,234,567 tokens | 205,761 tok/s | "
            "0.5 MiB/s | eta 18s");
  EXPECT_NE(progress_line({4000, 4000, 3, 3, 9}, 6).find("writing"), std::string::npos);
  EXPECT_NE(progress_line({0, 4, 0, 12 * mib, 0}, 0).find("eta ?"), std::string::npos);
  EXPECT_NE(progress_line({}, 6).find("looks for its inputs"), std::string::npos);
  // Whether documents come or not, it is said again and again.
  std::mutex mutex;
  std::condition_variable heard;
  std::vector<std::string> lines;
  ProgressTeller teller(0.005, [&](const std::string& line) {
    const std::lock_guard lock(mutex);
    lines.push_back(line);
    heard.notify_one();
  });
  teller.set({1, 3, 5, 20, 7});
  std::unique_lock lock(mutex);
  EXPECT_TRUE(heard.wait_for(lock, std::chrono::seconds(30), [&] { return lines.size() >= 4; }));
  EXPECT_NE(lines.back().find("tokenize 1 of 3 files"), std::string::npos) << lines.back();
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

/// A model that knows lower-case words and, with byte pieces or without, nothing else.
std::string small_model(const TempDirectory& folder, const std::string& name, bool byte_pieces,
                        const std::string& normalization) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "the quick brown fox finds five office jumps\n";
  put(folder / "train.txt", text);
  const std::string prefix = (folder / name).string();
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--input=" + (folder / "train.txt").string() + " --model_prefix=" + prefix +
      " --model_type=bpe --vocab_size=400 --hard_vocab_limit=false --minloglevel=2" +
      " --normalization_rule_name=" + normalization +
      " --byte_fallback=" + (byte_pieces ? "true" : "false"));
  EXPECT_TRUE(status.ok()) << status.ToString();
  return prefix + ".model";
}

/// Where tokens begin, against the texts that they stand for.
TEST(Tokenizer, SaysWhereTokensBegin) {
  TempDirectory folder;
  for (const bool byte_pieces : {true, false}) {
    for (const char* rule : {"identity", "nmt_nfkc"}) {
      SCOPED_TRACE(std::string(rule) + (byte_pieces ? ", byte pieces" : ""));
      const auto tokenizer = runtime::make_tokenizer(small_model(folder, "m", byte_pieces, rule));
      // Letters that it knows, one ligature that nfkc takes apart, others that nobody knows.
      const std::string text = "the fox \xef\xac\x81nds \xe2\x98\x83\xe2\x98\x83 five";
      const runtime::EncodedText encoded = tokenizer->encode(text, true);
      ASSERT_EQ(encoded.begins.size(), encoded.tokens.size());
      EXPECT_EQ(encoded.tokens, tokenizer->encode(text, false).tokens);
      EXPECT_TRUE(tokenizer->encode(text, false).begins.empty());
      EXPECT_TRUE(std::ranges::is_sorted(encoded.begins));
      EXPECT_EQ(encoded.begins.front(), 0);
      EXPECT_LT(encoded.begins.back(), std::ssize(text));
      // No token begins inside a character.
      for (const std::int64_t begin : encoded.begins)
        EXPECT_NE(static_cast<unsigned char>(text[static_cast<std::size_t>(begin)]) & 0xc0, 0x80);
      // The last word begins where it stands, with the space before it or without.
      const auto word = static_cast<std::int64_t>(text.find(" five"));
      EXPECT_TRUE(std::ranges::count(encoded.begins, word) == 1 ||
                  std::ranges::count(encoded.begins, word + 1) == 1);
      // A prompt up to there: all tokens from it on, and no other, weigh 1.
      WeightedText weighed;
      weighed.append(text.substr(0, static_cast<std::size_t>(word)), 0);
      weighed.append(text.substr(static_cast<std::size_t>(word)), 1);
      const std::vector<float> weights = weighed.weights(encoded.begins);
      std::vector<std::int32_t> completion;
      for (std::size_t i = 0; i < weights.size(); ++i) {
        EXPECT_EQ(weights[i], encoded.begins[i] >= word ? 1 : 0);
        if (weights[i] == 1) completion.push_back(encoded.tokens[i]);
      }
      EXPECT_EQ(tokenizer->decode(completion), "five");
    }
  }
}

TEST(Tokenizer, CountsWhatItReplaces) {
  TempDirectory folder;
  // A snowman twice, then bytes that are no UTF-8: cut short, overlong, a surrogate, past the end.
  const std::string snowmen = "fox \xe2\x98\x83\xe2\x98\x83 fox \xe2\x98\x83";
  const std::string invalid =
      "fox \xff fox \xe2\x98 \xc0\x80 \xed\xa0\x80 \xf5 \xf4\x90\x80\x80 the";
  for (const bool byte_pieces : {true, false}) {
    SCOPED_TRACE(byte_pieces);
    const std::string model = small_model(folder, "m", byte_pieces, "identity");
    const auto tokenizer = runtime::make_tokenizer(model);
    EXPECT_EQ(tokenizer->encode(snowmen, false).unknown_characters, byte_pieces ? 0 : 3);
    EXPECT_EQ(tokenizer->encode(snowmen, false).invalid_bytes, 0);
    EXPECT_EQ(tokenizer->encode(invalid, false).invalid_bytes, 1 + 2 + 2 + 3 + 1 + 4);
    // Twelve maximal parts that are ill-formed, a U+FFFD each; it is unknown where no byte pieces
    // hold it.
    EXPECT_EQ(tokenizer->encode(invalid, false).unknown_characters, byte_pieces ? 0 : 12);
    const std::string decoded = tokenizer->decode(tokenizer->encode(invalid, false).tokens);
    int replacements = 0;
    for (auto at = decoded.find("\xef\xbf\xbd"); at != std::string::npos;
         at = decoded.find("\xef\xbf\xbd", at + 3))
      ++replacements;
    if (byte_pieces) {
      EXPECT_EQ(replacements, 12);
    }
    put(folder / "in/a", snowmen);
    put(folder / "in/b", invalid);
    TokenizeOptions options{{folder / "in"}, folder / "c.h5", model, true};
    expect_error(ExitCode::data, "in/b: byte 4 is no UTF-8 (13 such bytes in all)",
                 [&] { tokenize(options); });
    options.invalid_utf8 = InvalidUtf8::replace;
    const std::string said = to_string(tokenize(options));
    EXPECT_EQ(said.find("15 characters by the unknown token") != std::string::npos, !byte_pieces)
        << said;
    EXPECT_NE(said.find("13 bytes that are no UTF-8, by U+FFFD"), std::string::npos) << said;
  }
  const auto bytes = runtime::make_tokenizer("bytes");  // keeps everything
  EXPECT_EQ(bytes->encode(invalid, true).invalid_bytes, 0);
  EXPECT_EQ(bytes->encode("abc", true).begins, (std::vector<std::int64_t>{0, 1, 2}));
}

TEST(Tokenizer, CountsBytesOfText) {
  TempDirectory folder;
  const auto tokenizer = runtime::make_tokenizer(small_model(folder, "m", true, "identity"));
  const std::string text = "the \xe2\x98\x83\xe2\x98\x83 fox";
  const runtime::EncodedText encoded = tokenizer->encode(text, true);
  for (const bool bos : {false, true}) {
    std::vector<std::int32_t> tokens(bos ? 1 : 0, *tokenizer->token_id("<s>"));
    for (std::size_t i = 0; i < encoded.tokens.size(); ++i) {
      tokens.push_back(encoded.tokens[i]);
      // Byte pieces of a character all begin where it does.
      if (i + 1 < encoded.begins.size() && encoded.begins[i + 1] == encoded.begins[i]) continue;
      EXPECT_EQ(tokenizer->text_bytes(tokens),
                i + 1 < encoded.begins.size() ? encoded.begins[i + 1] : std::ssize(text));
    }
  }
  EXPECT_EQ(tokenizer->text_bytes(std::vector{*tokenizer->token_id("<0xE2>")}), 1);
  EXPECT_EQ(tokenizer->text_bytes(std::vector{*tokenizer->token_id("<unk>")}), std::nullopt);
}

TEST(Tokenize, RefusesToLoseText) {
  TempDirectory folder;
  const auto model = [&](const std::string& unknown) {
    put(folder / "t.json",
        R"({"model": {"type": "BPE", "unk_token": )" + unknown +
            R"(, "vocab": {"a": 0, "b": 1, "?": 2}, "merges": []}, "normalizer": {"type": "Replace",)"
            R"( "pattern": {"String": "b"}, "content": "bb"}})");
    return (folder / "t.json").string();
  };
  put(folder / "a.txt", "abb\xe2\x80\x94z");
  put(folder / "r.jsonl", "{\"text\": \"ab\"}\n{\"prompt\": \"a\", \"completion\": \"bz\"}\n");
  TokenizeOptions options{{folder / "a.txt"}, folder / "c.h5", model("null")};
  expect_error(ExitCode::data,
               "a.txt: tokenizer tokenizer.json:t.json:", [&] { tokenize(options); });
  expect_error(
      ExitCode::data,
      " has no token for U+2014 at byte 3 of the text, and no unk_token to stand for it (2 "
      "such characters in all)",
      [&] { tokenize(options); });
  options.paths = {folder / "r.jsonl"};
  expect_error(ExitCode::data, "r.jsonl:2: tokenizer", [&] { tokenize(options); });
  expect_error(ExitCode::data, "no token for U+007A at byte 2 of", [&] { tokenize(options); });
  EXPECT_FALSE(fs::exists(folder / "c.h5"));
  options = {{folder / "a.txt"}, folder / "c.h5", model("\"?\"")};
  const std::string said = to_string(tokenize(options));
  EXPECT_NE(said.find("2 characters by the unknown token"), std::string::npos) << said;
}

TEST(Tokenize, BeginsAndEndsDocumentsWithTokensThatAreNamed) {
  TempDirectory folder;
  const std::string model = small_model(folder, "m", true, "identity");
  const auto tokenizer = runtime::make_tokenizer(model);
  put(folder / "in/a.txt", "the fox");
  put(folder / "in/b.txt", "");
  put(folder / "in/c.jsonl",
      "{\"prompt\": \"the fox\", \"completion\": \" jumps\"}\n{\"text\": \"the\"}\n");
  TokenizeOptions options{{folder / "in"}, folder / "c.h5", model, true};
  options.bos = "<s>";
  options.eos = "2";
  const TokenizeSummary summary = tokenize(options);
  EXPECT_EQ(summary.bos, "<s>, 1");
  EXPECT_NE(to_string(summary).find("\n  end with        2, 2\n"), std::string::npos)
      << to_string(summary);
  std::vector<std::int32_t> expected;
  std::vector<float> weights;
  for (const auto& [prompt, completion] : {std::pair<std::string, std::string>("", "the fox"),
                                           {"", ""},
                                           {"the fox", " jumps"},
                                           {"", "the"}}) {
    const runtime::EncodedText text = tokenizer->encode(prompt + completion, true);
    expected.push_back(1);
    weights.push_back(prompt.empty() ? 1.0f : 0.0f);
    for (std::size_t i = 0; i < text.tokens.size(); ++i) {
      expected.push_back(text.tokens[i]);
      weights.push_back(text.begins[i] < std::ssize(prompt) ? 0.0f : 1.0f);
    }
    expected.push_back(2);
    weights.push_back(1);
  }
  const Corpus corpus = Corpus::open(folder / "c.h5");
  ASSERT_EQ(corpus.info().documents, 4);
  ASSERT_EQ(corpus.info().tokens, std::ssize(expected));
  EXPECT_EQ(corpus.documents()[2] - corpus.documents()[1], 2);  // the empty one
  std::vector<std::int32_t> tokens(expected.size());
  std::vector<float> stored(expected.size());
  corpus.read(0, tokens);
  corpus.read_label_weights(0, stored);
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(stored, weights);
  for (const auto& [bos, why] : {std::pair<std::string, std::string>(
                                     "<bos>", "--bos <bos>: tokenizer sentencepiece:m.model:"),
                                 {"100000", "--bos 100000: the ids of tokenizer "}}) {
    options.bos = bos;
    expect_error(ExitCode::usage, why, [&] { tokenize(options); });
  }
  options.bos = "a";
  options.tokenizer = "bytes";
  expect_error(ExitCode::usage, "--bos a: tokenizer bytes has no such token",
               [&] { tokenize(options); });
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

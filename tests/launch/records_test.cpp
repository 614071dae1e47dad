// Records of JSON Lines: their forms, what is wrong with them, and the weights of their tokens.
#include "launch/records.h"

#include <gtest/gtest.h>

#include "launch/inspect.h"
#include "launch/tokenize.h"
#include "runtime/io/corpus.h"
#include "tests/support/expect_error.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::Corpus;
using runtime::ExitCode;
using test::expect_error;
using test::TempDirectory;

struct Read {
  std::string text;
  std::vector<float> weights;  // of its bytes
};

std::vector<Read> read_records(RecordReader& records, UnusedFields& unused) {
  std::vector<Read> all;
  while (records.next()) {
    const WeightedText record = parse_record(records.line(), records.place(), unused);
    std::vector<std::int64_t> begins;
    for (std::int64_t byte = 0; byte < std::ssize(record.text); ++byte) begins.push_back(byte);
    all.push_back({record.text, record.weights(begins)});
  }
  return all;
}

std::vector<Read> read_records(const std::string& path) {
  RecordReader records(path);
  UnusedFields unused;
  return read_records(records, unused);
}

TEST(Records, TakeThreeForms) {
  const TempDirectory folder;
  const std::string path = folder.write(
      "r.jsonl",
      "{\"text\": \"ab\", \"id\": 1, \"meta\": {\"text\": 1, \"x\": [[]]}}\r\n"
      "\n"
      "  {\"completion\": \" d\\n\", \"prompt\": \"c\\u00e9\"}\n"
      " \t\r\n"
      "{\"segments\": [{\"text\": \"e\", \"weight\": 0}, {\"weight\": 0.5, \"text\": \"\"},"
      " {\"text\": \"fg\", \"weight\": 2.5, \"role\": \"a\"}], \"id\": 2}\n"
      "{\"text\": \"\"}\n{\"segments\": []}\n"
      "{\"prompt\": \"\", \"completion\": \"h\"}");  // no newline at the end
  RecordReader reader(path);
  UnusedFields unused;
  const auto all = read_records(reader, unused);
  ASSERT_EQ(all.size(), 6u);
  EXPECT_EQ(all[0].text, "ab");
  EXPECT_EQ(all[0].weights, (std::vector{1.0f, 1.0f}));
  EXPECT_EQ(all[1].text, "c\xc3\xa9 d\n");
  EXPECT_EQ(all[1].weights, (std::vector{0.0f, 0.0f, 0.0f, 1.0f, 1.0f, 1.0f}));
  EXPECT_EQ(all[2].text, "efg");
  EXPECT_EQ(all[2].weights, (std::vector{0.0f, 2.5f, 2.5f}));
  EXPECT_EQ(all[3].text + all[4].text, "");
  EXPECT_EQ(all[5].text, "h");
  EXPECT_EQ(all[5].weights, (std::vector{1.0f}));
  EXPECT_EQ(reader.place(), path + ":8");
  EXPECT_EQ(reader.bytes_read(), std::ssize(test::read_text(path)));
  EXPECT_EQ(unused, (UnusedFields{{"id", 2}, {"meta", 1}, {"segments[].role", 1}}));
}

TEST(Records, OfAnyLengthAreRead) {
  const TempDirectory folder;
  const std::string path = folder.file("long.jsonl");
  std::string lines, expected;
  for (const std::size_t length : {3u << 20, 0u, 1u, (1u << 20) - 12, 1u << 20, 7u}) {
    const std::string text(length, static_cast<char>('a' + length % 26));
    lines += "{\"text\":\"" + text + "\"}\n";
    expected += text + "|";
  }
  test::write_text(path, lines);
  std::string actual;
  for (const Read& record : read_records(path)) actual += record.text + "|";
  EXPECT_EQ(actual, expected);
}

TEST(Records, TokensTakeTheWeightOfThePartInWhichTheyBegin) {
  WeightedText text;
  text.append("abc", 0);
  text.append("", 9);
  text.append("de", 2);
  text.append("f", 0.5);
  EXPECT_EQ(text.text, "abcdef");
  EXPECT_EQ(text.weights(std::vector<std::int64_t>{0, 2, 3, 3, 4, 5, 6}),
            (std::vector{0.0f, 0.0f, 2.0f, 2.0f, 2.0f, 0.5f, 0.5f}));
  EXPECT_EQ(WeightedText().weights(std::vector<std::int64_t>{0}), (std::vector{1.0f}));
}

TEST(Records, ThatAreMalformedAreRefusedWithFileLineAndField) {
  const TempDirectory folder;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"text": 1})", "field 'text' is a number; expected a string"},
      {R"({"text": null})", "field 'text' is null; expected a string"},
      {R"({"prompt": "a", "completion": ["b"]})", "field 'completion' is an array"},
      {R"({"prompt": "a"})", "field 'completion' is missing"},
      {R"({"completion": "a"})", "field 'prompt' is missing"},
      {R"({"segments": "a"})", "field 'segments' is a string; expected an array"},
      {R"({"segments": ["a"]})", "field 'segments[0]' is a string; expected an object"},
      {R"({"segments": [{"text": "a", "weight": 1}, {"text": "a"}]})",
       "field 'segments[1].weight' is missing"},
      {R"({"segments": [{"weight": 1}]})", "field 'segments[0].text' is missing"},
      {R"({"segments": [{"text": 7, "weight": 1}]})", "field 'segments[0].text' is a number"},
      {R"({"segments": [{"text": "a", "weight": "1"}]})", "field 'segments[0].weight' is a string"},
      {R"({"segments": [{"text": "a", "weight": true}]})",
       "field 'segments[0].weight' is a boolean"},
      {R"({"segments": [{"text": "a", "weight": -0.5}]})", "field 'segments[0].weight' is -0.5"},
      {R"({"segments": [{"text": "a", "weight": 1e39}]})", "field 'segments[0].weight' is 1e+39"},
      {R"({"segments": [{"text": "a", "weight": 1e-50}]})", "field 'segments[0].weight' is 1e-50"},
      {R"({"segments": [{"text": "a", "weight": 1e400}]})", "is not JSON: number overflow"},
      {R"({"segments": [{"text": "a", "weight": NaN}]})", "is not JSON at byte 39"},
      {R"({"segments": [{"text": "a", "text": "b", "weight": 1}]})", "field 'text' is there twice"},
      {R"({"text": "a", "text": "b"})", "field 'text' is there twice"},
      {R"({"text": "a", "prompt": "b", "completion": "c"})",
       "has the fields 'completion', 'prompt', 'text'; expected one of the forms \"text\", or"},
      {R"({"text": "a", "segments": []})", "has the fields 'segments', 'text'"},
      {R"({"txt": "a"})", "has the fields 'txt'; expected one of the forms"},
      {"{}", "has the fields of no form"},
      {R"({"text": "a", "weight": 0.5})", "field 'weight' would not be used"},
      {R"(["a"])", "is an array; expected an object"},
      {"null", "is null; expected an object"},
      {R"("text")", "is a string; expected an object"},
      {R"({"text": "a")", "is not JSON at byte 13: "},
      {R"({"text": "a"} {"text": "b"})", "is not JSON at byte 15: "},
      {"{\"text\": \"\xff\"}", "is not JSON at byte 11: "},
      {R"({"text": "\ud800"})", "is not JSON at byte 17: "},
      {R"(text)", "is not JSON at byte "},
  };
  for (const auto& [line, why] : cases) {
    SCOPED_TRACE(line);
    const std::string path =
        folder.write("bad.jsonl", std::string("{\"text\": \"right\"}\n\n") + line + "\n{}\n");
    expect_error(ExitCode::data, path + ":3: " + why, [&] { read_records(path); });
    expect_error(ExitCode::data, "bad.jsonl:3: ", [&] {
      tokenize({{path}, folder / "c.h5", "bytes"});
    });
    EXPECT_FALSE(std::filesystem::exists(folder / "c.h5"));
  }
}

TEST(Records, BecomeACorpusWithWeights) {
  const TempDirectory folder;
  const std::string records = folder.write(
      "in.jsonl",
      "{\"prompt\": \"Why?\", \"completion\": \"So.\"}\n{\"text\": \"ab\", \"url\": \"x\"}\n");
  const std::string text = folder.write("in.txt", "{\"text\": 1}\n");  // a file of text, as it is
  const TokenizeSummary summary = tokenize({{text, records}, folder / "c.h5", "bytes"});
  const Corpus corpus = Corpus::open(folder / "c.h5");
  EXPECT_EQ(summary.documents, 3);
  EXPECT_EQ(corpus.info().label_weights, runtime::hdf5::Element::uint8);
  std::vector<float> weights(static_cast<std::size_t>(corpus.info().tokens));
  corpus.read_label_weights(0, weights);
  std::vector<float> expected(12 + 4 + 3 + 2, 1.0f);
  std::fill_n(expected.begin() + 12, 4, 0.0f);
  EXPECT_EQ(weights, expected);
  EXPECT_EQ(summary.tokens_without_weight, 4);
  const std::string said = to_string(summary);
  EXPECT_NE(said.find("label weights   uint8; 4 tokens of weight 0"), std::string::npos) << said;
  EXPECT_NE(said.find("fields not used url (1 times)"), std::string::npos) << said;
  const std::string inspected = inspect({.path = folder / "c.h5"});
  EXPECT_NE(inspected.find("label weights     uint8; 17 tokens weigh more than 0, together 17"),
            std::string::npos)
      << inspected;

  // Records that all weigh 1 give the corpus of the same texts as files, byte for byte.
  folder.write("plain.jsonl",
               "{\"text\": \"one\"}\n{\"segments\": [{\"text\": \"two\", \"weight\": 1}]}\n");
  tokenize({{folder / "plain.jsonl"}, folder / "records.h5", "bytes"});
  const std::string one = folder.write("1", "one"), two = folder.write("2", "two");
  tokenize({{one, two}, folder / "files.h5", "bytes"});
  EXPECT_EQ(test::read_text(folder / "records.h5"), test::read_text(folder / "files.h5"));
}

/// The program from records to a loss: prompts are context only.
TEST(Records, TrainOnCompletionsAlone) {
  const TempDirectory folder;
  std::string lines;
  for (int i = 0; i < 20; ++i)
    lines += "{\"prompt\": \"What is " + std::to_string(i) +
             " plus one?\", \"completion\": \" It is " + std::to_string(i + 1) + ".\"}\n";
  const std::string records = folder.write("in.jsonl", lines), corpus = folder.file("c.h5");
  ASSERT_EQ(test::run_longhaul({"tokenize", records, "--output", corpus}).exit_code, 0);
  const std::string config = folder.write(
      "run.toml", "[job]\noutput_dir = \"" + folder.file("out") +
                      "\"\n[model]\nhidden_size = 16\nintermediate_size = 32\n"
                      "num_hidden_layers = 1\nnum_attention_heads = 2\n[data]\ncorpus = \"" +
                      corpus +
                      "\"\n[training]\nseq_len = 64\ntokens_per_step = 64\nsteps = 3\n"
                      "[parallelism]\ncontext_parallel_degree = 3\n[comm]\nbackend = "
                      "\"loopback\"\n");
  const auto result = test::run_longhaul({"train", config});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string metrics = test::read_text(folder.file("out/metrics.jsonl"));
  // 64 tokens hold about 1.8 records of 26 prompt and 10 completion bytes.
  std::size_t steps = 0;
  for (std::size_t at = metrics.find("\"labels\":"); at != std::string::npos;
       at = metrics.find("\"labels\":", at + 1), ++steps) {
    const int labels = std::atoi(metrics.c_str() + at + 9);
    EXPECT_GT(labels, 5);
    EXPECT_LT(labels, 35);
  }
  EXPECT_EQ(steps, 3u);
}

}  // namespace
}  // namespace longhaul::launch
